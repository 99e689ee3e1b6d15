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
#include <optional>
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
// Throws kInvalidArgument naming the field of a placement from a file or a peer that names no type
// that it can have, or has not one of each layer. int8 and int4 are of single matrices, not of the
// embedding.
void validate_dtypes(const ModelSpec& model, const Placement& placement);
// The layers' matrices of `dtype`, embedding and head of bf16.
WeightDtypes layers_of(const ModelSpec& model, DType dtype);
// Throws kFailedPrecondition naming a rank that cannot compute with the types: CPUs have neither
// int8 nor int4. Ranks are those of the placement, or all of the topology that are to be placed on.
void check_quantised(const Topology& topology, const Placement& placement);
void check_quantised(const Topology& topology, const std::optional<WeightDtypes>& types);

// What a worker allocates for this shard, in the layout of its device (kernels/sizes.h). A learned
// prefix counts with the weights.
uint64_t weight_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                      const Placement& placement);
uint64_t kv_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                  const Placement& placement);
// Buffers of one step: the stage's activations at max_batch_tokens, and the scratch of the shard's
// threads or GPU.
uint64_t activation_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Placement& placement);
// That of a GPU, which its largest steps make grow.
int64_t cuda_scratch_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                           const Placement& placement);

// Whether all its ranks compute on GPUs, which then may exchange tensors without the host.
bool on_gpus(const StageSpec& stage);

// Staging of one rank's messages to and from a group, in the host's memory if nothing else is said.
struct StagingBytes {
  size_t incoming = 0;
  size_t outgoing = 0;
  size_t outbox = 0;  // of each of two messages that may be on their way to the next stage
  // Of tensors that lie on a GPU: copies of any one; of gathered logits, which by NCCL are gathered
  // in the GPU's memory.
  size_t copy = 0;
  size_t gathered = 0;
  // Of a GPU's memory, for the sums of a group whose ranks all have one.
  size_t peers = 0;
};
// Of the stage's ranks.
StagingBytes group_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                           int tp_rank, const Placement& placement);
// Of the edge between this rank and one of `other`, the stage before or the next; nothing where it
// has none.
StagingBytes edge_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                          int tp_rank, const Placement& placement, int other);
// What of that lies in the memory that the rank computes in. Of a GPU's, what NCCL and sums among
// GPUs take: less is allocated where a group has no NCCL or keeps none of its GPUs' memory, which
// the ranks only find out when they meet.
uint64_t communication_bytes(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                             int tp_rank, const Placement& placement);

// The most query heads of the shard that read one KV head.
int32_t heads_of_kv(const ModelSpec& model, const ShardSpec& shard);

}  // namespace trireme
