// SPDX-License-Identifier: Apache-2.0
// Where the model goes. plan_placement() is pure: no I/O, no randomness.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"

namespace trireme {

struct PlacementOptions {
  DType dtype = DType::kBF16;
  std::optional<WeightDtypes> weight_dtypes;  // where matrices differ; as Placement has them
  // tp·pp·dp must not exceed the workers; what is left over is spare. Unset ones are chosen: no
  // replicas, the least tensor parallelism (1), as many stages as there are workers left.
  std::optional<int32_t> tp, pp, dp;
  int32_t block_size = 16;
  int32_t max_sequences = 32;
  int32_t max_batch_tokens = 512;
  std::optional<int32_t> context;                    // default: the model's
  std::map<std::string, uint64_t> max_memory_bytes;  // key: worker index ("0"), host:index or "cpu"
};

// Layers are cut among stages in proportion to what each stage's ranks can hold, counting embedding
// and head as the layers they weigh as much as. KV blocks: what max_sequences of `context`
// positions need, or what the memory left over holds if that is less (at least one sequence of
// `context`). Throws kInvalidArgument (degrees that do not fit) or kResourceExhausted (memory: the
// rank, what it needs, what it has, and what to change).
Placement plan_placement(const Topology& topology, const ModelSpec& model,
                         const PlacementOptions& options);

// Checks a placement from a file or a peer against model and topology: every layer exactly once per
// replica, ranks that exist and are used once, shards that cover heads, FFN and vocabulary. Throws
// kInvalidArgument naming the place.
void validate_placement(const Topology& topology, const ModelSpec& model,
                        const Placement& placement);

// The same for a rank that does not know the topology: all but whether the ranks exist.
void validate_placement(const ModelSpec& model, const Placement& placement);

// Throws kResourceExhausted where a rank has less memory than predict_bytes() says that it needs.
void check_memory(const Topology& topology, const Placement& placement);

// Fills every shard's predicted bytes from the ranges.
void predict_bytes(const ModelSpec& model, Placement& placement);

}  // namespace trireme
