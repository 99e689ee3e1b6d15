// SPDX-License-Identifier: Apache-2.0
// The ranks of one replica. They compute nothing, but keep a KV cache whose every slot remembers
// who wrote it, and find what a real worker could not: a block shared or read before it was
// written, an order broken. The token drawn is a hash of all tokens before it, read from that
// cache: one slot wrong, and the answer differs from that of the same request alone.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "tests/simulation/simulated_channel.h"
#include "tests/simulation/timeline.h"
#include "worker/history.h"

namespace trireme {

// The hash chain that stands for a model.
constexpr uint64_t kChainStart = 0x9E3779B97F4A7C15u;
uint64_t chain(uint64_t before, int32_t token, int32_t position);
int32_t draw_token(uint64_t chain, uint64_t seed, int32_t vocab_size);

struct ReplicaSetting {
  Placement placement;
  int index = 0;
  int32_t vocab_size = 0;
  std::function<std::chrono::microseconds(int32_t tokens)> stage_time;  // of a micro-batch
};

// How a result can be wrong.
enum class Fault {
  kNone,
  kWrongBatch,
  kWrongToken,
  kTooManyTokens,
  kWrongSequence,
  kWrongRank,
  kWrongKind
};

class SimulatedReplica {
 public:
  // `violation` hears of what the coordinator did wrong.
  SimulatedReplica(const ReplicaSetting& setting, Timeline& timeline, Random& random,
                   SimulatedChannel& channel, std::function<void(const std::string&)> violation);

  const std::vector<int>& ranks() const { return ranks_; }
  void receive(int rank, const ToWorker& message);

  // The rank says no more. Returns when the coordinator learns it.
  Clock::time_point close(int rank, const std::string& reason);
  // The rank says that it cannot go on. Returns when the coordinator learns it.
  Clock::time_point report_failure(int rank, Code code, const std::string& message);
  // The next result is wrong in this way; `sent` gets the sender and the time of its arrival.
  void corrupt_next(Fault fault, std::function<void(int, Clock::time_point)> sent);

  // What is wrong with how the coordinator left it: `lost`: it has lost a rank.
  void check_end(bool lost);
  // How often a sequence began anew: it had been preempted.
  int num_restarts() const { return num_restarts_; }
  // Whether it began a sequence after one that arrived later.
  bool out_of_order() const { return out_of_order_; }
  // The sequences that it has computed anything of.
  const std::set<uint64_t>& begun() const { return begun_; }

 private:
  struct Slot {
    uint64_t sequence = 0;
    int32_t position = -1;
    int32_t token = 0;
    uint64_t chain = 0;
  };
  struct Stage {
    std::vector<int> ranks;
    size_t num_done = 0;  // micro-batches
    bool busy = false;
  };

  void receive_batch(int rank, const MicroBatch& batch);
  void try_start(size_t stage);
  void finish(size_t stage);
  void send_result(size_t index);
  void send_corrupt(int reporter, FromWorker message);
  MicroBatchResult compute(const MicroBatch& batch);
  void compute_chunk(const SequenceChunk& chunk, MicroBatchResult& result);
  void check_history(const SequenceChunk& chunk);
  bool check_table(const SequenceChunk& chunk);
  Slot& slot(const SequenceChunk& chunk, int32_t position);
  void fail(const std::string& what);

  ReplicaSetting setting_;
  Timeline& timeline_;
  Random& random_;
  SimulatedChannel& channel_;
  std::function<void(const std::string&)> violation_;
  std::vector<int> ranks_;
  std::vector<Stage> stages_;
  std::map<int, size_t> num_received_;  // micro-batches, by rank
  std::map<int, int> num_abandons_;
  std::set<int> closed_;
  bool halted_ = false;  // a rank is gone: nothing more is computed

  std::vector<MicroBatch> batches_;  // all, in order
  std::vector<MicroBatchResult> results_;
  size_t num_results_sent_ = 0;
  std::set<uint64_t> sequences_in_flight_;
  std::map<int32_t, uint64_t> blocks_in_flight_;  // to the sequence
  std::vector<Slot> cache_;
  Histories histories_;  // the real ones
  std::set<uint64_t> begun_;
  int num_restarts_ = 0;
  bool out_of_order_ = false;
  Fault fault_ = Fault::kNone;
  std::function<void(int, Clock::time_point)> fault_sent_;
};

}  // namespace trireme
