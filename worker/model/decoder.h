// SPDX-License-Identifier: Apache-2.0
// A pre-norm decoder's layers [first, last) on one tensor-parallel shard: norm, attention,
// residual, norm, gated FFN, residual. Every family of the table and every device runs this page;
// what a family does not have is an empty buffer of its weights. The input of each matmul is
// written in the type that its weight computes with, so the types of weights may differ.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "worker/comm/communicator.h"
#include "worker/kv_cache.h"
#include "worker/model/weights.h"

namespace trireme {

class Decoder {
 public:
  // Allocates the step's buffers for the placement's largest micro-batch. `weights` (of `stage` on
  // `shard`), the backend and the stage's tensor-parallel group must outlive the decoder.
  Decoder(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
          const Weights& weights, const Placement& placement, Backend& backend,
          Communicator& group);

  // x [T, H] fp32 in and out: the residual stream.
  void forward(Tensor x, const BatchView& batch, const KvCache& kv);

  uint64_t bytes() const;  // of the step's buffers

 private:
  // What differs between layers besides their weights.
  struct LayerOptions {
    AttentionSpec attention;
    const RopeTable* rope = nullptr;
  };

  // Both find their input normed, and norm what they make of x for the block behind them while they
  // add to it: an addition and the norm that follows it are one operation.
  void attention_block(const LayerWeights& layer, const LayerOptions& options, Tensor x,
                       const BatchView& batch, const KvLayer& kv);
  // next: the layer behind it, if this stage has it.
  void mlp_block(const LayerWeights& layer, const LayerWeights* next, Tensor x);
  // Sums the ranks' parts of `branch`, what a block adds to x, and norms it if `norm` is there.
  void reduce_branch(Tensor branch, const Buffer& norm);
  // Where x is normed for a product with `weight`: until another of them is.
  Tensor normed_for(const Weight& weight, const Tensor& x) const;
  Tensor view(const Buffer& buffer, DType dtype, int64_t rows, int64_t cols) const;

  const Weights& weights_;
  Backend& ops_;
  Communicator& group_;
  int first_layer_;
  int layer_ = 0;  // the one in work, of the model
  int64_t hidden_, head_dim_, num_heads_, num_kv_heads_, ffn_;
  float eps_;
  HeadMap heads_;
  Backend::Activation activation_;
  int32_t prefix_length_;
  RopeTable rope_, local_rope_;
  std::vector<LayerOptions> options_;
  Buffer normed_, branch_, qkv_, attended_, gate_up_, gated_;
};

// cos and sin of every position for `rope`, its scaling applied.
RopeTable make_rope_table(const RopeSpec& rope, int32_t num_positions, Backend& backend);

}  // namespace trireme
