// SPDX-License-Identifier: Apache-2.0
// Where the model goes. plan_placement() is pure: no I/O, no randomness.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"
#include "topology/cost.h"

namespace trireme {

// The most that a placement may have of either: no product of sizes overflows with them.
inline constexpr int32_t kMaxSequences = 1 << 16;
inline constexpr int32_t kMaxBatchTokens = 1 << 20;

struct PlacementOptions {
  DType dtype = DType::kBF16;
  std::optional<WeightDtypes> weight_dtypes;  // where matrices differ; as Placement has them
  // tp·pp·dp must not exceed the workers; what is left over is spare. Unset ones are chosen.
  std::optional<int32_t> tp, pp, dp;
  int32_t block_size = 16;
  int32_t max_sequences = 32;
  int32_t max_batch_tokens = 512;
  std::optional<int32_t> context;                    // default: the model's
  std::map<std::string, uint64_t> max_memory_bytes;  // key: worker index ("0"), host:index or "cpu"

  Objective objective = OBJECTIVE_THROUGHPUT;
  Load load;  // that throughput is predicted for
  std::optional<double> tpot_limit_s, ttft_limit_s;
  double cpu_seconds = 1;           // the search ends after about as much, with what it has proved
  std::vector<int32_t> tp_degrees;  // that may be used; empty: all that islands and model allow
  std::vector<int32_t> batches;     // sequences per micro-batch to choose from; empty: a grid
  bool limit_sequences = true;      // micro-batches x sequences of each within max_sequences
  CostAssumptions assumptions;
};

// The best placement that the search finds for the objective, with its predictions, how far from
// the best it can be at most (predicted().gap()), and the runner-up. Degrees that are given are
// constraints of the same search. Where the topology says nothing of links or speeds, there is one
// replica, without tensor parallelism, of as many stages as there are workers, unless degrees say
// otherwise. KV blocks: what max_sequences of `context` positions need, or what the memory left
// over holds if that is less (at least one sequence of `context`). Throws kInvalidArgument (degrees
// that do not fit) or kResourceExhausted (memory: the rank, what it needs, what it has, and what to
// change; limits that no placement keeps).
Placement plan_placement(const Topology& topology, const ModelSpec& model,
                         const PlacementOptions& options);

// After a loss: `topology` is what is left. Replicas that lost no rank stay as they are; the ranks
// of the others and the spare ones are planned anew. The gap is to the old bound.
Placement replan_placement(const Topology& topology, const ModelSpec& model,
                           const PlacementOptions& options, const Placement& old);

// Predicted times of any placement: of its stages, replicas and as a whole. REQUIRES:
// validate_placement returned.
void predict_times(const Topology& topology, const ModelSpec& model,
                   const PlacementOptions& options, Placement& placement);

// Checks a placement from a file or a peer against model and topology: every layer exactly once per
// replica, ranks that exist and are used once, shards that cover heads, FFN and vocabulary. Throws
// kInvalidArgument naming the place.
void validate_placement(const Topology& topology, const ModelSpec& model,
                        const Placement& placement);

// The same for a rank that does not know the topology: all but whether the ranks exist.
void validate_placement(const ModelSpec& model, const Placement& placement);

// Throws kResourceExhausted where a rank has less memory than predict_bytes() says that it needs,
// with the num_blocks that it has room for.
void check_memory(const Topology& topology, const Placement& placement);

// All ranks of a replica: by stage, and in a stage by tp_rank.
std::vector<int> ranks_of(const ReplicaSpec& replica);

// KV blocks of a replica.
int32_t num_blocks_of(const Placement& placement, int replica);

// The replica has so many from now on, at most as many as before: num_blocks and kv_bytes say so.
void lower_num_blocks(Placement& placement, int replica, int32_t num_blocks);

// Fills every shard's predicted bytes from the ranges and what set_devices() says.
void predict_bytes(const ModelSpec& model, Placement& placement);

}  // namespace trireme
