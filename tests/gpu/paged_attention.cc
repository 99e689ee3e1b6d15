// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "kernels/base/check.h"
#include "kernels/dtype.h"

namespace trireme {

float AttentionShape::scale() const { return 1 / std::sqrt(static_cast<float>(head_dim)); }

double AttentionShape::operations() const {
  const double first = context - queries + 1;  // keys that the first token sees
  const double pairs = queries * (first + context) / 2;
  return 4.0 * head_dim * heads * sequences * pairs;
}

PagedAttention::PagedAttention(Backend& backend, const Noise& noise, const AttentionShape& shape,
                               int layers)
    : backend_(backend), shape_(shape), layers_(layers) {
  CHECK(shape.context % shape.block_size == 0 && shape.queries <= shape.context &&
            shape.heads % shape.kv_heads == 0 && layers > 0,
        std::to_string(shape.context));
  cache_ = backend.allocate(static_cast<size_t>(2 * shape.bytes_of_keys() * layers));
  noise.fill(cache_);
  make_batch();
  make_queries();
  y_ = backend.allocate(static_cast<size_t>(shape.tokens() * shape.cols() * 2));
}

// Neighbours of a sequence are far from each other in the cache.
void PagedAttention::make_batch() {
  const int32_t of_sequence = shape_.blocks_of_sequence();
  const int32_t blocks = shape_.sequences * of_sequence;
  int32_t step = std::min(blocks, 7919);
  while (std::gcd(step, blocks) != 1) --step;
  for (int64_t i = 0; i < blocks; ++i) tables_.push_back(static_cast<int32_t>(i * step % blocks));
  std::vector<int32_t> begin;
  for (int32_t s = 0; s <= shape_.sequences; ++s) begin.push_back(s * shape_.queries);
  const auto sequences = static_cast<size_t>(shape_.sequences);
  batch_.num_tokens = shape_.tokens();
  batch_.num_sequences = shape_.sequences;
  batch_.max_blocks = of_sequence;
  batch_.max_queries = shape_.queries;
  batch_.max_context = shape_.context;
  batch_.query_begin = upload(begin);
  batch_.context = upload(std::vector<int32_t>(sequences, shape_.context));
  batch_.block_tables = upload(tables_);
  counts_ = upload(std::vector<int32_t>(sequences, shape_.queries));
}

// Numbers of bf16, so that fp32 and bf16 mean the same. Some thousand in turn are as good as any.
void PagedAttention::make_queries() {
  std::mt19937 random(19);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> some(65521);
  for (uint16_t& value : some) value = float_to_bf16(normal(random));
  const auto count = static_cast<size_t>(shape_.tokens() * shape_.cols());
  std::vector<float> wide(count);
  queries_.resize(count);
  for (size_t i = 0; i < count; ++i) {
    queries_[i] = some[i % some.size()];
    wide[i] = bf16_to_float(queries_[i]);
  }
  q_ = upload(wide);
  narrow_q_ = upload(queries_);
}

template <typename T>
T* PagedAttention::upload(const std::vector<T>& values) {
  arrays_.push_back(backend_.allocate(values.size() * sizeof(T)));
  backend_.upload(arrays_.back().data(), values.data(), values.size() * sizeof(T));
  backend_.synchronize();
  return static_cast<T*>(arrays_.back().data());
}

std::byte* PagedAttention::keys_of(int layer) const {
  return static_cast<std::byte*>(cache_.data()) + 2 * shape_.bytes_of_keys() * layer;
}

void PagedAttention::run(int layer) {
  KvLayer kv;
  kv.k = keys_of(layer);
  kv.v = keys_of(layer) + shape_.bytes_of_keys();
  kv.dtype = DType::kBF16;
  kv.num_blocks = static_cast<int32_t>(tables_.size());
  kv.num_heads = shape_.kv_heads;
  kv.block_size = shape_.block_size;
  kv.head_dim = shape_.head_dim;
  backend_.attention(Tensor(y_.data(), DType::kBF16, shape_.tokens(), shape_.cols()),
                     Tensor(q_, DType::kF32, shape_.tokens(), shape_.cols()), kv, batch_,
                     {0, 0, shape_.heads / shape_.kv_heads}, {shape_.scale(), 0, 0});
}

AttentionOperands PagedAttention::operands(int layer) const {
  return {narrow_q_,     keys_of(layer),      keys_of(layer) + shape_.bytes_of_keys(),
          y_.data(),     batch_.block_tables, counts_,
          batch_.context};
}

// The keys, or values, of one head of a sequence, position by position.
std::vector<uint16_t> PagedAttention::rows_of(const std::byte* base, CacheLayout layout,
                                              int32_t sequence, int32_t kv_head) const {
  const int32_t d = shape_.head_dim;
  std::vector<uint16_t> rows(static_cast<size_t>(shape_.context) * static_cast<size_t>(d));
  // Pieces that lie together, and where each begins.
  const int32_t piece = layout == CacheLayout::kPaged ? shape_.block_size : shape_.context;
  for (int32_t at = 0; at < shape_.context; at += piece) {
    int64_t owner = sequence;
    if (layout == CacheLayout::kPaged) {
      const int64_t entry = int64_t{sequence} * batch_.max_blocks + at / piece;
      owner = tables_[static_cast<size_t>(entry)];
    }
    const int64_t from = (owner * shape_.kv_heads + kv_head) * piece * d;
    backend_.download(&rows[static_cast<size_t>(at) * static_cast<size_t>(d)], base + from * 2,
                      static_cast<size_t>(piece) * static_cast<size_t>(d) * 2);
  }
  return rows;
}

std::vector<double> PagedAttention::exact(int32_t token, int32_t head,
                                          const std::vector<uint16_t>& keys,
                                          const std::vector<uint16_t>& values) const {
  const auto d = static_cast<size_t>(shape_.head_dim);
  const int32_t query = token % shape_.queries;
  const auto seen = static_cast<size_t>(shape_.context - shape_.queries + query + 1);
  const uint16_t* q = &queries_[static_cast<size_t>(token * shape_.cols()) + head * d];
  std::vector<double> scores(seen);
  for (size_t p = 0; p < seen; ++p) {
    for (size_t i = 0; i < d; ++i) {
      scores[p] += double{bf16_to_float(q[i])} * bf16_to_float(keys[p * d + i]);
    }
    scores[p] *= shape_.scale();
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  std::vector<double> y(d);
  for (size_t p = 0; p < seen; ++p) {
    const double weight = std::exp(scores[p] - most);
    total += weight;
    for (size_t i = 0; i < d; ++i) y[i] += weight * bf16_to_float(values[p * d + i]);
  }
  for (double& value : y) value /= total;
  return y;
}

void PagedAttention::clear() {
  const std::vector<uint16_t> nothing(y_.bytes() / 2, 0x7FC0);  // NaN
  backend_.upload(y_.data(), nothing.data(), y_.bytes());
  backend_.synchronize();
}

double PagedAttention::error(int layer, CacheLayout layout) {
  std::vector<uint16_t> found(static_cast<size_t>(shape_.tokens() * shape_.cols()));
  backend_.download(found.data(), y_.data(), found.size() * 2);
  double wrong = 0;
  double right = 0;
  const int32_t last = shape_.tokens() - 1;
  const std::byte* const keys_at = keys_of(layer);
  for (const int32_t token : std::set<int32_t>{0, last / 2, last}) {
    const int32_t sequence = token / shape_.queries;
    for (const int32_t head : std::set<int32_t>{0, shape_.heads / 2, shape_.heads - 1}) {
      const int32_t kv_head = head / (shape_.heads / shape_.kv_heads);
      const auto keys = rows_of(keys_at, layout, sequence, kv_head);
      const auto values = rows_of(keys_at + shape_.bytes_of_keys(), layout, sequence, kv_head);
      const std::vector<double> y = exact(token, head, keys, values);
      const int64_t from = token * shape_.cols() + int64_t{head} * shape_.head_dim;
      for (size_t i = 0; i < y.size(); ++i) {
        const double value = bf16_to_float(found[static_cast<size_t>(from) + i]);
        wrong += (value - y[i]) * (value - y[i]);
        right += y[i] * y[i];
      }
    }
  }
  return std::sqrt(wrong / right);
}

}  // namespace trireme
