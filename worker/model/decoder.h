// SPDX-License-Identifier: Apache-2.0
// A pre-norm decoder's layers [first, last) on one tensor-parallel shard: norm, attention,
// residual, norm, gated FFN, residual. Every family of the table and every device runs this page.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "worker/comm/communicator.h"
#include "worker/kv_cache.h"
#include "worker/model/weights.h"

namespace trireme {

class Decoder {
 public:
  // Allocates the step's buffers for max_tokens. All references must outlive the decoder; `group`
  // is the stage's tensor-parallel group.
  Decoder(const ModelSpec& model, const ShardSpec& shard, const Weights& weights, DType dtype,
          int32_t max_tokens, int32_t max_positions, Backend& backend, Communicator& group);

  // x [T, H] fp32 in and out: the residual stream.
  void forward(Tensor x, const BatchView& batch, const KvCache& kv);

  uint64_t bytes() const;  // of the step's buffers

 private:
  void attention_block(const LayerWeights& layer, Tensor x, const BatchView& batch,
                       const KvLayer& kv);
  void mlp_block(const LayerWeights& layer, Tensor x);
  Tensor view(const Buffer& buffer, DType dtype, int64_t rows, int64_t cols) const;

  const Weights& weights_;
  Backend& ops_;
  Communicator& group_;
  DType e_;  // matmul inputs and KV
  int64_t hidden_, head_dim_, num_heads_, num_kv_heads_, ffn_;
  float eps_;
  HeadMap heads_;
  AttentionSpec attention_;
  RopeTable rope_;
  Buffer normed_, branch_, qkv_, attended_, gate_up_, gated_;
};

// cos and sin of every position for `rope`, llama3 and linear scaling applied.
RopeTable make_rope_table(const RopeSpec& rope, int32_t num_positions, Backend& backend);

}  // namespace trireme
