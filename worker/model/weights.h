// SPDX-License-Identifier: Apache-2.0
// This rank's slices of the weights, on its backend.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "worker/model/checkpoint.h"

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
};

// Reads exactly what `shard` of `stage` owns, each matrix as the type that the placement gives it.
// progress(bytes_done) is called every few MiB of the checkpoint read; it may throw to abandon the
// load. Throws kInvalidArgument for a tensor that is missing or of another shape, naming it and
// both shapes.
Weights load_weights(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                     const Placement& placement, Checkpoint& checkpoint, Backend& backend,
                     const std::function<void(uint64_t bytes_done)>& progress);

// Bytes of the checkpoint that load_weights will read for this shard, whole rows for column slices.
uint64_t checkpoint_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Checkpoint& checkpoint);

}  // namespace trireme
