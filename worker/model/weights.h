// SPDX-License-Identifier: Apache-2.0
// This rank's slices of the weights, on its backend.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"
#include "worker/model/checkpoint.h"
#include "worker/model/node_reading.h"

namespace trireme {

struct LayerWeights {
  Buffer attention_norm;  // [H]
  Weight qkv;             // [(Q + 2K)·D, H] of this shard's heads
  Buffer qkv_bias;        // like every vector fp32, and empty where the model has none
  Buffer q_norm, k_norm;  // [D]
  Weight attention_out;   // [H, Q·D]
  // [H] on the first rank of the stage, whose part of the branch has it; likewise down_bias
  Buffer attention_out_bias;
  Buffer post_attention_norm;  // [H]
  Buffer mlp_norm;             // [H]
  Weight gate_up;              // [2F, H]
  Buffer gate_up_bias;         // [2F]
  Weight down;                 // [H, F]
  Buffer down_bias;            // [H]
  Buffer post_mlp_norm;        // [H]
  Buffer prefix;               // K, then V, each [K, P, D] of the cache's type; or empty
};

struct Weights {
  Weight embedding;   // [V, H] if the stage has the embedding, or a tied head
  Buffer final_norm;  // [H] fp32 if the stage has the head
  Weight head;        // [V, H] if the stage has the head and it is not tied
  std::vector<LayerWeights> layers;

  uint64_t bytes = 0;  // allocated on the backend

  uint64_t node_bytes = 0;  // of the checkpoint, that the plan's members read together
  // Of the tensors that this rank read, if the plan is to read everything.
  TensorDigests digests;
};

// The bytes of plan.work_bytes() that are done.
using LoadProgressFunction = std::function<void(uint64_t bytes_done)>;

// Reads what `member` of the plan owns, together with the plan's other members, each matrix as the
// type that the placement gives it. progress is called every few MiB; it may throw to abandon the
// load. group as in read_together. Throws kInvalidArgument for values that cannot be served, naming
// the tensor.
Weights load_weights(const ModelSpec& model, const Placement& placement, const ReadPlan& plan,
                     int member, Communicator* group, Checkpoint& checkpoint, Backend& backend,
                     const LoadProgressFunction& progress);

// The same for a rank that shares with nobody. Throws kInvalidArgument for a tensor that is missing
// or of another shape, naming it and both shapes.
Weights load_weights(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                     const Placement& placement, Checkpoint& checkpoint, Backend& backend,
                     const LoadProgressFunction& progress);

// Bytes of the checkpoint that a shard needs, whole rows for column slices.
uint64_t checkpoint_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Checkpoint& checkpoint);

}  // namespace trireme
