// SPDX-License-Identifier: Apache-2.0
// Continuous batching for one replica: which tokens run next. A pure state machine: no clock,
// thread, I/O or randomness; the engine drives it at its own pace and the simulation by seed.
//
//   waiting --next()--> running --complete(), drop()--> gone
//      ^______ preempted (blocks ran out: the youngest goes back and is computed again)
//
// A sequence is in at most one micro-batch in flight, and at most `stages` micro-batches are in
// flight. Running sequences are spread over the micro-batches, so that every stage has work: a
// micro-batch takes at most ceil(decoding / stages) decoding sequences, those that have waited
// longest. Decodes go first, then prompt chunks in order of arrival, within max_batch_tokens.
//
// Age is the order of arrival, and it never changes. Blocks go from the younger to the older, never
// the other way, and the oldest can take all that are not in flight: so it always moves on, and
// each sequence becomes the oldest in its time. Hence no livelock, and nothing starves.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "coordinator/block_manager.h"
#include "coordinator/request.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

struct SchedulerOptions {
  int32_t num_stages = 1;
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int32_t max_sequences = 64;  // running at once
  int32_t max_batch_tokens = 512;
  int32_t vocab_size = 0;  // a token drawn outside [0, vocab_size) is a worker's error
};

// A request's place in the scheduler.
struct Sequence {
  uint64_t id = 0;
  uint64_t arrival = 0;  // age: lower is older
  std::vector<int32_t>
      tokens;  // prompt, then output; all of it is computed again after a preemption
  int32_t num_prompt = 0;
  int32_t num_computed = 0;     // positions whose K/V are in the cache, or on their way in flight
  std::vector<int32_t> blocks;  // empty while waiting; for all of `tokens` once admitted
  SamplingParams sampling;
  bool in_flight = false;
  bool dropped = false;  // ended while in flight: freed when the result is in

  int32_t num_missing() const { return static_cast<int32_t>(tokens.size()) - num_computed; }
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Whether a sequence of so many positions can ever run: alone, with all blocks.
  bool fits(int64_t num_positions) const;
  // Enters a sequence at the end of the queue. REQUIRES: a new id, a prompt of at least one token,
  // and that it fits with all its output.
  void add(uint64_t sequence, std::vector<int32_t> prompt, const SamplingParams& sampling);
  // Whether a new sequence with such a prompt would have a place in the next micro-batch. Who asks
  // before add() keeps no sequence waiting here that could run elsewhere.
  bool takes(int64_t num_prompt) const;
  // Ends a sequence: finished, cancelled or failed. Its blocks are free once it is not in flight.
  void drop(uint64_t sequence);

  // The next micro-batch, or nullopt if nothing can run now (or `stages` are in flight).
  std::optional<MicroBatch> next();
  // Takes the result of the micro-batch that has been in flight longest: appends the drawn tokens.
  // CHECKs nothing of a peer's message: throws kInternal, with nothing changed, if id or tokens do
  // not belong to it. Returns the sequences (not dropped) that got a token, in the batch's order.
  struct Drawn {
    uint64_t sequence = 0;
    const SampledToken* token = nullptr;  // into `result`
  };
  std::vector<Drawn> complete(const MicroBatchResult& result);

  int32_t num_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_blocks_free() const { return blocks_.num_free(); }
  bool idle() const { return sequences_.empty(); }

 private:
  struct Part {
    Sequence* sequence = nullptr;
    bool samples = false;
  };
  struct InFlight {
    uint64_t id = 0;
    std::vector<Part> parts;  // in the batch's order
  };
  // A micro-batch that next() fills.
  struct Draft {
    MicroBatch batch;
    std::vector<Part> parts;
    int32_t tokens_left = 0;
  };

  int32_t blocks_for(int64_t num_positions) const;
  int32_t decode_share() const;
  void take_decodes(Draft& draft);
  void take_prompts(Draft& draft);
  void admit(Draft& draft);
  void append_chunk(Draft& draft, Sequence& sequence, int32_t num_tokens);
  // Gives `sequence` the blocks of its next position, at the cost of younger ones if need be.
  bool make_room(Sequence& sequence);
  void preempt(Sequence& sequence);
  void release_history(const Sequence& sequence);
  void check_result(const InFlight& expected, const MicroBatchResult& result) const;

  SchedulerOptions options_;
  BlockManager blocks_;
  uint64_t next_batch_ = 1;
  uint64_t next_arrival_ = 1;
  std::unordered_map<uint64_t, Sequence> sequences_;  // owns; the lists below point into it
  std::deque<Sequence*> waiting_;                     // by age
  std::vector<Sequence*> running_;                    // by age: the last is the youngest
  std::vector<Sequence*>
      ready_;  // running, not in flight, one token to compute: longest wait first
  std::deque<InFlight> in_flight_;  // order of dispatch
  std::vector<uint64_t> released_;  // of the next micro-batch
};

}  // namespace trireme
