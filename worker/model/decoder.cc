// SPDX-License-Identifier: Apache-2.0
#include "worker/model/decoder.h"

#include <cmath>

#include "topology/shard.h"

namespace trireme {

Decoder::Decoder(const ModelSpec& model, const ShardSpec& shard, const Weights& weights,
                 DType dtype, int32_t max_tokens, int32_t max_positions, Backend& backend,
                 Communicator& group)
    : weights_(weights),
      ops_(backend),
      group_(group),
      e_(activation_dtype(dtype)),
      hidden_(model.hidden_size()),
      head_dim_(model.head_dim()),
      num_heads_(length(shard.heads())),
      num_kv_heads_(length(shard.kv_heads())),
      ffn_(length(shard.ffn())),
      eps_(static_cast<float>(model.norm_eps())),
      heads_{shard.heads().begin(), shard.kv_heads().begin(),
             model.num_heads() / model.num_kv_heads()},
      attention_{1 / std::sqrt(static_cast<float>(model.head_dim()))},
      rope_(make_rope_table(model.rope(), max_positions, backend)) {
  const auto allocate = [&](DType type, int64_t cols) {
    return backend.allocate(static_cast<size_t>(max_tokens * cols * element_size(type)));
  };
  normed_ = allocate(e_, hidden_);
  branch_ = allocate(DType::kF32, hidden_);
  qkv_ = allocate(DType::kF32, (num_heads_ + 2 * num_kv_heads_) * head_dim_);
  attended_ = allocate(e_, num_heads_ * head_dim_);
  gate_up_ = allocate(DType::kF32, 2 * ffn_);
  gated_ = allocate(e_, ffn_);
}

Tensor Decoder::view(const Buffer& buffer, DType dtype, int64_t rows, int64_t cols) const {
  return {buffer.data(), dtype, rows, cols};
}

void Decoder::forward(Tensor x, const BatchView& batch, const KvCache& kv) {
  for (size_t index = 0; index < weights_.layers.size(); ++index) {
    const LayerWeights& layer = weights_.layers[index];
    attention_block(layer, x, batch, kv.layer(static_cast<int32_t>(index)));
    mlp_block(layer, x);
  }
}

void Decoder::attention_block(const LayerWeights& layer, Tensor x, const BatchView& batch,
                              const KvLayer& kv) {
  const int64_t q_cols = num_heads_ * head_dim_;
  const int64_t kv_cols = num_kv_heads_ * head_dim_;
  const Tensor h = view(normed_, e_, x.rows, hidden_);
  const Tensor qkv = view(qkv_, DType::kF32, x.rows, q_cols + 2 * kv_cols);
  const Tensor a = view(attended_, e_, x.rows, q_cols);
  const Tensor branch = view(branch_, DType::kF32, x.rows, hidden_);

  ops_.rms_norm(h, x, static_cast<const float*>(layer.attention_norm.data()), eps_);
  ops_.matmul(qkv, h, layer.qkv, static_cast<const float*>(layer.qkv_bias.data()));
  // Q and K lie beside each other, so one call rotates the heads of both.
  ops_.rope(qkv.column_range(0, q_cols + kv_cols), static_cast<int32_t>(num_heads_ + num_kv_heads_),
            batch.positions, rope_);
  ops_.store_kv(kv, qkv.column_range(q_cols, kv_cols), qkv.column_range(q_cols + kv_cols, kv_cols),
                batch.slots);
  ops_.attention(a, qkv.column_range(0, q_cols), kv, batch, heads_, attention_);
  ops_.matmul(branch, a, layer.attention_out, nullptr);
  group_.all_reduce_sum(branch);
  ops_.add(x, branch);
}

void Decoder::mlp_block(const LayerWeights& layer, Tensor x) {
  const Tensor h = view(normed_, e_, x.rows, hidden_);
  const Tensor gate_up = view(gate_up_, DType::kF32, x.rows, 2 * ffn_);
  const Tensor gated = view(gated_, e_, x.rows, ffn_);
  const Tensor branch = view(branch_, DType::kF32, x.rows, hidden_);

  ops_.rms_norm(h, x, static_cast<const float*>(layer.mlp_norm.data()), eps_);
  ops_.matmul(gate_up, h, layer.gate_up, nullptr);
  ops_.gated_activation(gated, gate_up, Backend::Activation::kSilu);
  ops_.matmul(branch, gated, layer.down, nullptr);
  group_.all_reduce_sum(branch);
  ops_.add(x, branch);
}

uint64_t Decoder::bytes() const {
  uint64_t total = rope_.storage.bytes();
  for (const Buffer* buffer : {&normed_, &branch_, &qkv_, &attended_, &gate_up_, &gated_}) {
    total += buffer->bytes();
  }
  return total;
}

}  // namespace trireme
