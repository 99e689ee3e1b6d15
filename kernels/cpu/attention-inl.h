// SPDX-License-Identifier: Apache-2.0
// The attention of one item, once per Highway target (see vector_targets.h).
#include <cmath>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::cpu::HWY_NAMESPACE {

// The row of one position in one half (keys or values) of the cache.
template <class Element>
const Element* cache_row(const AttentionItem& item, const void* half, int64_t position) {
  const KvLayer& kv = *item.kv;
  const int64_t block = item.blocks[position / kv.block_size];
  const int64_t row =
      (block * kv.num_heads + item.kv_head) * kv.block_size + position % kv.block_size;
  return static_cast<const Element*>(half) + row * kv.head_dim;
}

template <class Element>
void widen_row(float* to, const Element* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(load(from + i, n - i), FloatTag(), to + i);
}

// rows [4, width] to columns [first, first + 4) of keys [D, 64]: transposes 4 x 4 in each 128 bits.
HWY_INLINE void transpose_4_rows(const float* rows, int64_t width, float* keys, int64_t first) {
  const FloatTag tag;
  const hn::RepartitionToWide<FloatTag> pair_tag;
  const hn::FixedTag<float, 4> quad_tag;
  alignas(64) float lanes[4][kLanes];
  for (int64_t d = 0; d < width; d += kLanes) {
    const Vector a = hn::LoadU(tag, rows + d);
    const Vector b = hn::LoadU(tag, rows + width + d);
    const Vector c = hn::LoadU(tag, rows + 2 * width + d);
    const Vector e = hn::LoadU(tag, rows + 3 * width + d);
    const auto ab_low = hn::BitCast(pair_tag, hn::InterleaveLower(tag, a, b));
    const auto ab_high = hn::BitCast(pair_tag, hn::InterleaveUpper(tag, a, b));
    const auto ce_low = hn::BitCast(pair_tag, hn::InterleaveLower(tag, c, e));
    const auto ce_high = hn::BitCast(pair_tag, hn::InterleaveUpper(tag, c, e));
    const auto keep = [&](int i, auto value) HWY_ATTR {
      hn::Store(hn::BitCast(tag, value), tag, lanes[i]);
    };
    keep(0, hn::InterleaveLower(pair_tag, ab_low, ce_low));
    keep(1, hn::InterleaveUpper(pair_tag, ab_low, ce_low));
    keep(2, hn::InterleaveLower(pair_tag, ab_high, ce_high));
    keep(3, hn::InterleaveUpper(pair_tag, ab_high, ce_high));
    for (int64_t i = 0; i < kLanes; ++i) {
      const auto quad = hn::Load(quad_tag, lanes[i % 4] + i / 4 * 4);
      hn::StoreU(quad, quad_tag, keys + (d + i) * kPositions + first);
    }
  }
}

// Widens the keys and values of positions [begin, begin + count) of this item's KV head.
template <class Element>
void load_block(const AttentionItem& item, const AttentionScratch& s, int64_t begin,
                int64_t count) {
  const int64_t head_dim = item.kv->head_dim;
  for (int64_t first = 0; first < count; first += 4) {
    for (int64_t i = 0; i < 4; ++i) {
      // Scores of the positions past the end are never used: any key will do for them.
      const int64_t position = begin + std::min(first + i, count - 1);
      widen_row(s.staging + i * s.width, cache_row<Element>(item, item.kv->k, position), head_dim);
    }
    transpose_4_rows(s.staging, s.width, s.keys, first);
  }
  for (int64_t i = 0; i < count; ++i) {
    widen_row(s.values + i * s.width, cache_row<Element>(item, item.kv->v, begin + i), head_dim);
  }
}

// y[rows, 0..columns) += x · w in tiles.
HWY_INLINE void multiply(TileArgs args, const float* w, int64_t columns, int64_t rows) {
  float* const y = args.y;
  args.w_stride = columns;
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    args.w = reinterpret_cast<const uint32_t*>(w) + column;
    args.y = y + column;
    tile_rows<Fp32Words>(args, rows);
  }
}

// Turns one row's scores of `count` positions into weights and rescales what it summed before.
HWY_INLINE void soften_row(const AttentionScratch& s, int64_t row, int64_t count) {
  const FloatTag tag;
  float* scores = s.scores + row * kPositions;
  std::fill(scores + count, scores + kPositions, -std::numeric_limits<float>::infinity());
  Vector highest = hn::LoadU(tag, scores);
  for (int64_t i = kLanes; i < kPositions; i += kLanes) {
    highest = hn::Max(highest, hn::LoadU(tag, scores + i));
  }
  const float before = s.maximum[row];
  const float now = std::max(before, hn::GetLane(hn::MaxOfLanes(tag, highest)));
  const Vector maximum = hn::Set(tag, now);
  Vector total = hn::Zero(tag);
  for (int64_t i = 0; i < kPositions; i += kLanes) {
    const Vector weight = hn::Exp(tag, hn::Sub(hn::LoadU(tag, scores + i), maximum));
    hn::StoreU(weight, tag, scores + i);
    total = hn::Add(total, weight);
  }
  const Vector shrink = hn::Exp(tag, hn::Set(tag, before - now));
  const float sum = hn::GetLane(hn::SumOfLanes(tag, total));
  s.total[row] = s.total[row] * hn::GetLane(shrink) + sum;
  s.maximum[row] = now;
  if (before == now) return;
  float* sums = s.sums + row * s.width;
  for (int64_t i = 0; i < s.width; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(tag, sums + i), shrink), tag, sums + i);
  }
}

// Adds the positions [begin, begin + count) to every row that sees some of them.
HWY_INLINE void add_block(const AttentionItem& item, const AttentionScratch& s, int64_t begin,
                          int64_t count) {
  const int64_t heads = item.heads;
  const int64_t first_token = std::max<int64_t>(0, begin - item.first_position);
  const int64_t first_row = first_token * heads;
  const int64_t rows = item.tokens * heads - first_row;
  float* scores = s.scores + first_row * kPositions;
  std::fill(scores, scores + rows * kPositions, 0.0f);
  TileArgs args;
  args.x = s.q + first_row * s.width;
  args.x_stride = s.width;
  args.words = item.kv->head_dim;
  args.y = scores;
  args.y_stride = kPositions;
  multiply(args, s.keys, kPositions, rows);

  for (int64_t token = first_token; token < item.tokens;) {
    // A token sees the positions up to its own; neighbours that see equally many are one product.
    const auto seen = [&](int64_t t) HWY_ATTR {
      return std::min(count, item.first_position + t + 1 - begin);
    };
    const int64_t positions = seen(token);
    int64_t end = token + 1;
    while (end < item.tokens && seen(end) == positions) ++end;
    for (int64_t row = token * heads; row < end * heads; ++row) soften_row(s, row, positions);
    args.x = s.scores + token * heads * kPositions;
    args.x_stride = kPositions;
    args.words = positions;
    args.y = s.sums + token * heads * s.width;
    args.y_stride = s.width;
    multiply(args, s.values, s.width, (end - token) * heads);
    token = end;
  }
}

// Calls fn(row, token, head) for each row of the item.
template <class Function>
HWY_INLINE void for_each_row(const AttentionItem& item, const Function& fn) {
  for (int64_t token = 0; token < item.tokens; ++token) {
    for (int64_t head = 0; head < item.heads; ++head) fn(token * item.heads + head, token, head);
  }
}

template <class Element>
void attend_as(const AttentionItem& item, float* memory) {
  const FloatTag tag;
  const int64_t head_dim = item.kv->head_dim;
  const int64_t rows = int64_t{item.tokens} * item.heads;
  const AttentionScratch s(memory, rows, head_dim);
  // The padding of values and staging is never written, but multiplied: it must be finite.
  std::fill(s.values, s.staging + 4 * s.width, 0.0f);
  std::fill(s.sums, s.sums + rows * s.width, 0.0f);
  std::fill(s.total, s.total + rows, 0.0f);
  std::fill(s.maximum, s.maximum + rows, -std::numeric_limits<float>::infinity());
  const Vector scale = hn::Set(tag, 1.0f / std::sqrt(static_cast<float>(head_dim)));
  for_each_row(item, [&](int64_t row, int64_t token, int64_t head) HWY_ATTR {
    const float* q = item.q.row<float>(token) + head * head_dim;
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      hn::StoreU(hn::Mul(load(q + i, head_dim - i), scale), tag, s.q + row * s.width + i);
    }
  });

  const int64_t end = int64_t{item.first_position} + item.tokens;
  for (int64_t begin = 0; begin < end; begin += kPositions) {
    const int64_t count = std::min(kPositions, end - begin);
    load_block<Element>(item, s, begin, count);
    add_block(item, s, begin, count);
  }

  for_each_row(item, [&](int64_t row, int64_t token, int64_t head) HWY_ATTR {
    auto* y = static_cast<Element*>(item.y.at(token, head * head_dim));
    const Vector total = hn::Set(tag, s.total[row]);
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const Vector sum = hn::LoadU(tag, s.sums + row * s.width + i);
      store(y + i, hn::Div(sum, total), head_dim - i);
    }
  });
}

inline void attend(const AttentionItem& item, float* memory) {
  if (item.kv->dtype == DType::kF32) return attend_as<float>(item, memory);
  attend_as<uint16_t>(item, memory);
}

}  // namespace trireme::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
