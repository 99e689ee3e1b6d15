// SPDX-License-Identifier: Apache-2.0
// The learned prefix of P-tuning v2: keys and values that stand in front of every layer's cache and
// are seen by every token. (Liu et al. 2022; the encoder as ChatGLM2's code has it.)
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "worker/model/checkpoint.h"

namespace trireme {

// Of each layer of the stage, this shard's K, then V, each [K, P, D] of `dtype`: empty if the model
// has no prefix. Computed in fp32 on the backend: the encoder's table as it is, or
// W2 · tanh(W1 · table + b1) + b2. Throws like load_weights.
std::vector<Buffer> load_prefixes(const ModelSpec& model, const StageSpec& stage,
                                  const ShardSpec& shard, DType dtype, Checkpoint& checkpoint,
                                  Backend& backend);

// Bytes of the checkpoint that load_prefixes reads; finds missing tensors.
uint64_t prefix_checkpoint_bytes(const ModelSpec& model, const StageSpec& stage,
                                 const ShardSpec& shard, const Checkpoint& checkpoint);

}  // namespace trireme
