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
#include <initializer_list>
#include <string>

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

// The matrices that may each have a type of their own; vectors are fp32 always.
enum class Matrix : uint8_t { kEmbedding, kHead, kQkv, kAttentionOut, kGateUp, kDown };

// The type of a matrix; `layer` counts in the model, and says nothing of the first two.
// REQUIRES, like all below: validate_dtypes returned.
DType weight_dtype(const Placement& placement, Matrix matrix, int32_t layer = 0);
// The type of the matrix that the head multiplies by: the embedding's if it is tied.
DType head_dtype(const ModelSpec& model, const Placement& placement);
// Of the KV cache: what the placement's dtype computes in, whatever single matrices are.
DType cache_dtype(const Placement& placement);
// The widest type that inputs of these matrices have in any layer of the stage.
DType widest_input(const Placement& placement, const StageSpec& stage,
                   std::initializer_list<Matrix> matrices);
// "bf16", or "mixed bf16 fp32".
std::string dtype_summary(const Placement& placement);
// Throws kInvalidArgument naming the field of a placement from a file or a peer that names no type,
// or has not one of each layer.
void validate_dtypes(const ModelSpec& model, const Placement& placement);

// What a worker allocates for this shard. Exact for CPU layouts (kernels/sizes.h). A learned prefix
// counts with the weights.
uint64_t weight_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                      const Placement& placement);
uint64_t kv_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                  const Placement& placement);
// Buffers of one step: the stage's activations at max_batch_tokens, and the scratch of the shard's
// threads.
uint64_t activation_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Placement& placement);

// Staging of one rank's messages: to and from its group, to and from all ranks of its replica.
struct StagingBytes {
  size_t incoming = 0;
  size_t outgoing = 0;
  size_t outbox = 0;  // of each of two messages that may be on their way to the next stage
  size_t total() const { return incoming + outgoing + 2 * outbox; }
};
StagingBytes group_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                           int tp_rank, const Placement& placement);
StagingBytes replica_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                             int tp_rank, const Placement& placement);

// The most query heads of the shard that read one KV head.
int32_t heads_of_kv(const ModelSpec& model, const ShardSpec& shard);

}  // namespace trireme
