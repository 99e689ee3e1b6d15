// SPDX-License-Identifier: Apache-2.0
// How a stage is cut among tensor-parallel ranks, and the bytes of each cut. The planner predicts
// with these functions what the loader reads and the worker allocates; nobody else computes a
// slice.
//
// Shards may be unequal (any degree up to the number of query heads): query heads are cut freely; a
// KV head whose group a cut straddles is replicated; FFN columns are cut in units of kFfnUnit, the
// last rank takes the remainder; vocabulary rows are cut evenly.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"

namespace trireme {

constexpr int32_t kFfnUnit = 32;

inline int32_t length(const Range& range) { return range.end() - range.begin(); }

// Ranges of tp_rank of tp_degree; bytes are left zero. Throws kInvalidArgument if the degree is
// more than the model can be cut into.
ShardSpec make_shard(const ModelSpec& model, int32_t tp_rank, int32_t tp_degree);

// Checks a shard that came from a file or a peer against the model: ranges ordered, in bounds, KV
// heads covering the query heads. Throws kInvalidArgument naming the field.
void validate_shard(const ModelSpec& model, const ShardSpec& shard);

// What a worker allocates for this shard. Exact for CPU layouts (kernels/sizes.h). A learned prefix
// counts with the weights.
uint64_t weight_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                      DType dtype);
uint64_t kv_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                  const Placement& placement);
// Buffers of one step: the stage's activations at max_batch_tokens.
uint64_t activation_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Placement& placement);

}  // namespace trireme
