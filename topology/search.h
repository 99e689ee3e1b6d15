// SPDX-License-Identifier: Apache-2.0
// The planner's problem as numbers, and its searches. Devices fall in few pools of equal ones, so a
// placement is a multiset of replicas, a replica a multiset of stage types: counts, not identities.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace trireme {

// One group of tp devices of one pool, with everything that a search asks, tabulated. Vectors are
// by index into SearchProblem::batches.
struct StageType {
  int pool = 0;
  int32_t tp = 1;
  std::vector<double> request_s;          // one layer: a whole request's prompt and output
  std::vector<double> decode_s;           // one layer: a decode step
  std::vector<double> all_reduce_step_s;  // of decode_s
  std::vector<double> head_request_s;     // the head: a whole request
  std::vector<double> head_step_s;        // the head: a decode step
  double chunk_s = 0;                     // one layer: a chunk of a prompt (the mean of its chunks)
  // Bytes of its fullest device.
  double usable_bytes = 0;    // what is there, less the reserve
  double fixed_bytes = 0;     // buffers
  double layer_bytes = 0;     // weights
  double kv_token_bytes = 0;  // of one layer
  double head_bytes = 0, embedding_bytes = 0;
  double head_and_embedding_bytes = 0;  // of a stage that has both: less than their sum if tied
};

// Layers that a stage's memory holds beside the bytes of what else it has.
int32_t memory_layers(const StageType& type, double kv_positions, double extra_bytes);

// Interchangeable islands: equal devices, links and table.
struct Pool {
  std::vector<std::pair<int32_t, int32_t>> islands;  // (devices, how many), by devices
  std::vector<int> types;                            // ascending by tp
  int32_t devices() const;
};

struct SearchProblem {
  int32_t layers = 0;
  std::vector<int32_t> batches;  // sequences per micro-batch, ascending
  std::vector<Pool> pools;
  std::vector<StageType> types;
  std::vector<double>
      hop_request_s;        // by batch: the least a link between two stages is busy per request
  double hop_token_s = 0;   // the least that one row takes between two stages
  double kv_positions = 0;  // of one sequence
  double least_kv_positions = 0;    // that every stage must hold
  int32_t max_sequences = 1 << 30;  // micro-batches x sequences of each
  int32_t max_stages = 32;
  int32_t fixed_stages = 0;    // of every replica; 0: free
  int32_t fixed_replicas = 0;  // 0: free
  double output_tokens = 256;
  double chunks = 1;  // of a prompt
  double tpot_limit_s = std::numeric_limits<double>::infinity();
  double ttft_limit_s = std::numeric_limits<double>::infinity();
  double latency_kv_positions = 0;  // that every stage must hold for the latency objective
  double latency_head_share = 0;
  // Where hops differ, by pool and pool (every island is a pool then): seconds of a row, and by
  // batch seconds per request. Empty: all are as hop_token_s and hop_request_s say.
  std::vector<std::vector<double>> pool_hop_token_s;
  std::vector<std::vector<std::vector<double>>> pool_hop_request_s;
  // Where devices lie in regions (regions.h): that of each pool, and by the set of regions that a
  // replica lies in (bits), what hop_request_s is then, by batch, and what its crossings add to
  // hop_token_s of each hop. Empty: there is one.
  std::vector<int> pool_region;
  std::vector<std::vector<double>> region_hop_request_s;
  std::vector<double> region_hop_token_s;
};

using Counts = std::vector<int32_t>;  // of stages, by type

struct StageLayers {
  int type = 0;
  int32_t layers = 0;
  bool embedding = false, head = false;
};

// One copy of the model. Stages in any order, but for the first (embedding) and the last (head).
struct Replica {
  Counts counts;
  int batch = 0;  // index into batches; latency: sequences are 1
  int32_t micro_batches = 0;
  double request_s = 0;  // of its slowest stage or link; latency objective: s per token
  double rate = 0;       // requests/s
  std::vector<StageLayers> stages;
};

// CPU time of this thread; searches ask it rarely.
class Stopwatch {
 public:
  explicit Stopwatch(double budget_s);
  double elapsed_s() const;
  bool over() const { return elapsed_s() > budget_s_; }
  bool over_share(double share) const { return elapsed_s() > share * budget_s_; }

 private:
  double start_s_;
  double budget_s_;
};

// The best replica of exactly these stages: batch, layers, and which stage holds the head. Nothing
// if none fits memory and limits, or if it is not faster than `at_least` requests/s.
std::optional<Replica> best_replica(const SearchProblem& problem, const Counts& counts,
                                    double at_least = 0);
// The same for one sequence alone, least seconds per token; `at_most` in place of `at_least`.
std::optional<Replica> quickest_replica(const SearchProblem& problem, const Counts& counts,
                                        double at_most = std::numeric_limits<double>::infinity());

// The order of the stages (first and last stay) with the least worst hop, or the least sum of hops,
// and that worst or sum. `hop` is by position. Exact up to 10 stages, else nearest first, improved
// by 2-opt.
struct StageOrder {
  double cost = 0;
  std::vector<int> order;
};
StageOrder order_stages(const std::vector<std::vector<double>>& hop, bool sum);

// All multisets of stages that fit the pools at once.
class CountVectors {
 public:
  // Nothing if there are more than `most`.
  static std::optional<CountVectors> make(const SearchProblem& problem, size_t most);

  size_t size() const { return vectors_.size(); }
  const Counts& operator[](size_t index) const { return vectors_[index]; }
  // REQUIRES: `smaller` is at most (*this)[index] in every component.
  size_t minus(size_t index, size_t smaller) const { return index_[keys_[index] - keys_[smaller]]; }

 private:
  std::vector<Counts> vectors_;  // every vector comes after all that are smaller
  std::vector<uint64_t> keys_;
  std::vector<uint32_t> index_;  // by key
};

struct SearchResult {
  std::vector<std::pair<Replica, int32_t>> replicas;  // and how many of each
  double value = 0;                                   // requests/s; latency: s per token
  double bound = 0;                                   // no placement is better
  bool exact = false;
};

// Dynamic programming over the count vectors: the optimum.
SearchResult exact_throughput(const SearchProblem& problem, const CountVectors& vectors);
SearchResult exact_latency(const SearchProblem& problem, const CountVectors& vectors);

}  // namespace trireme
