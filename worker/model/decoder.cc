// SPDX-License-Identifier: Apache-2.0
#include "worker/model/decoder.h"

#include <cmath>

#include "topology/shard.h"

namespace trireme {

namespace {

DType input_type(const Weight& weight) { return activation_dtype(weight.dtype); }

const float* floats(const Buffer& buffer) { return static_cast<const float*>(buffer.data()); }

float attention_scale(const ModelSpec& model) {
  const double scale = model.attention_scale();
  return static_cast<float>(scale > 0 ? scale : 1 / std::sqrt(1.0 * model.head_dim()));
}

}  // namespace

Decoder::Decoder(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                 const Weights& weights, const Placement& placement, Backend& backend,
                 Communicator& group)
    : weights_(weights),
      ops_(backend),
      group_(group),
      first_layer_(stage.layers().begin()),
      hidden_(model.hidden_size()),
      head_dim_(model.head_dim()),
      num_heads_(length(shard.heads())),
      num_kv_heads_(length(shard.kv_heads())),
      ffn_(length(shard.ffn())),
      eps_(static_cast<float>(model.norm_eps())),
      heads_{shard.heads().begin(), shard.kv_heads().begin(),
             model.num_heads() / model.num_kv_heads()},
      activation_(model.activation() == ACTIVATION_GELU_TANH ? Backend::Activation::kGeluTanh
                                                             : Backend::Activation::kSilu),
      prefix_length_(model.prefix_length()),
      rope_(make_rope_table(model.rope(), placement.context(), backend)) {
  if (model.has_local_rope()) {
    local_rope_ = make_rope_table(model.local_rope(), placement.context(), backend);
  }
  for (int32_t index = stage.layers().begin(); index < stage.layers().end(); ++index) {
    const int32_t window = model.windows().empty() ? 0 : model.windows(index);
    const bool local = window > 0 && model.has_local_rope();
    const auto softcap = static_cast<float>(model.attention_softcap());
    options_.push_back({{attention_scale(model), softcap, window}, local ? &local_rope_ : &rope_});
  }
  const auto allocate = [&](DType type, int64_t cols) {
    return backend.allocate(
        static_cast<size_t>(placement.max_batch_tokens() * cols * element_size(type)));
  };
  const auto input = [&](std::initializer_list<Matrix> matrices) {
    return widest_input(placement, stage, matrices);
  };
  normed_ = allocate(input({Matrix::kQkv, Matrix::kGateUp}), hidden_);
  branch_ = allocate(DType::kF32, hidden_);
  qkv_ = allocate(DType::kF32, (num_heads_ + 2 * num_kv_heads_) * head_dim_);
  attended_ = allocate(input({Matrix::kAttentionOut}), num_heads_ * head_dim_);
  gate_up_ = allocate(DType::kF32, 2 * ffn_);
  gated_ = allocate(input({Matrix::kDown}), ffn_);
}

Tensor Decoder::view(const Buffer& buffer, DType dtype, int64_t rows, int64_t cols) const {
  return {buffer.data(), dtype, rows, cols};
}

Tensor Decoder::normed_for(const Weight& weight, const Tensor& x) const {
  return view(normed_, input_type(weight), x.rows, hidden_);
}

void Decoder::forward(Tensor x, const BatchView& batch, const KvCache& kv) {
  const std::vector<LayerWeights>& layers = weights_.layers;
  if (!layers.empty()) {
    const LayerWeights& layer = layers.front();
    ops_.rms_norm(normed_for(layer.qkv, x), x, floats(layer.attention_norm), eps_);
  }
  for (size_t index = 0; index < layers.size(); ++index) {
    const LayerWeights& layer = layers[index];
    KvLayer cache = kv.layer(static_cast<int32_t>(index));
    if (prefix_length_ > 0) {
      auto* prefix = static_cast<const std::byte*>(layer.prefix.data());
      cache.prefix_k = prefix;
      cache.prefix_v = prefix + layer.prefix.bytes() / 2;
      cache.prefix_length = prefix_length_;
    }
    layer_ = first_layer_ + static_cast<int>(index);
    group_.progress().begin(OPERATION_ATTENTION, layer_);
    attention_block(layer, options_[index], x, batch, cache);
    group_.progress().begin(OPERATION_MLP, layer_);
    mlp_block(layer, index + 1 < layers.size() ? &layers[index + 1] : nullptr, x);
  }
}

void Decoder::attention_block(const LayerWeights& layer, const LayerOptions& options, Tensor x,
                              const BatchView& batch, const KvLayer& kv) {
  const int64_t q_cols = num_heads_ * head_dim_;
  const int64_t kv_cols = num_kv_heads_ * head_dim_;
  const auto q_heads = static_cast<int32_t>(num_heads_);
  const auto k_heads = static_cast<int32_t>(num_kv_heads_);
  const Tensor h = normed_for(layer.qkv, x);
  const Tensor qkv = view(qkv_, DType::kF32, x.rows, q_cols + 2 * kv_cols);
  const Tensor q = qkv.column_range(0, q_cols);
  const Tensor k = qkv.column_range(q_cols, kv_cols);
  const Tensor a = view(attended_, input_type(layer.attention_out), x.rows, q_cols);
  const Tensor branch = view(branch_, DType::kF32, x.rows, hidden_);

  ops_.matmul(qkv, h, layer.qkv, floats(layer.qkv_bias));
  if (layer.q_norm.data() != nullptr) {
    ops_.rms_norm_heads(q, q_heads, floats(layer.q_norm), eps_);
    ops_.rms_norm_heads(k, k_heads, floats(layer.k_norm), eps_);
  }
  ops_.rope_store_kv(qkv, kv, batch.positions, *options.rope, batch.slots);
  ops_.attention(a, q, kv, batch, heads_, options.attention);
  ops_.matmul(branch, a, layer.attention_out, floats(layer.attention_out_bias));
  reduce_branch(branch, layer.post_attention_norm);
  ops_.add_rms_norm(normed_for(layer.gate_up, x), x, branch, floats(layer.mlp_norm), eps_);
}

void Decoder::mlp_block(const LayerWeights& layer, const LayerWeights* next, Tensor x) {
  const Tensor h = normed_for(layer.gate_up, x);
  const Tensor gate_up = view(gate_up_, DType::kF32, x.rows, 2 * ffn_);
  const Tensor gated = view(gated_, input_type(layer.down), x.rows, ffn_);
  const Tensor branch = view(branch_, DType::kF32, x.rows, hidden_);

  ops_.matmul_gated(gated, gate_up, h, layer.gate_up, floats(layer.gate_up_bias), activation_);
  ops_.matmul(branch, gated, layer.down, floats(layer.down_bias));
  reduce_branch(branch, layer.post_mlp_norm);
  if (next == nullptr) return ops_.add(x, branch);
  ops_.add_rms_norm(normed_for(next->qkv, x), x, branch, floats(next->attention_norm), eps_);
}

void Decoder::reduce_branch(Tensor branch, const Buffer& norm) {
  if (group_.size() > 1) group_.progress().begin(OPERATION_ALL_REDUCE, layer_);
  group_.all_reduce_sum(branch);
  if (norm.data() != nullptr) ops_.rms_norm(branch, branch, floats(norm), eps_);
}

uint64_t Decoder::bytes() const {
  uint64_t total = rope_.storage.bytes() + local_rope_.storage.bytes();
  for (const Buffer* buffer : {&normed_, &branch_, &qkv_, &attended_, &gate_up_, &gated_}) {
    total += buffer->bytes();
  }
  return total;
}

}  // namespace trireme
