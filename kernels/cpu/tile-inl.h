// SPDX-License-Identifier: Apache-2.0
// The register tile of all fp32 products: y[r, c] += Σ_k x[r, k] · w[k, c], in ascending k, one fused
// multiply-add per k. Included once per Highway target by another -inl.h (see vector_targets.h).
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::cpu::HWY_NAMESPACE {

// Two vectors wide, and as high as the registers allow: 24 of 32 accumulate, or 12 of 16.
constexpr int64_t kTileColumns = 2 * kLanes;
constexpr int kMaxTileRows = kLanes == 16 ? 12 : 6;
// So far ahead of its use a weight is fetched: the hardware's own prefetcher stops at page ends.
constexpr int64_t kPrefetchBytes = 2048;

// A row of w is 32-bit words, each one fp32 value or two neighbouring k. kDepth is the k per word;
// load() widens a vector of words to kDepth vectors of fp32.
struct Fp32Words {
  static constexpr int kDepth = 1;
  static HWY_INLINE void load(const uint32_t* words, Vector* values) {
    const WordTag tag;
    values[0] = hn::BitCast(FloatTag(), hn::LoadU(tag, words));
  }
};

struct Bf16Words {
  static constexpr int kDepth = 2;
  static HWY_INLINE void load(const uint32_t* words, Vector* values) {
    const WordTag tag;
    const auto pair = hn::LoadU(tag, words);
    values[0] = hn::BitCast(FloatTag(), hn::ShiftLeft<16>(pair));
    values[1] = hn::BitCast(FloatTag(), hn::And(pair, hn::Set(tag, 0xFFFF0000u)));
  }
};

struct Fp16Words {
  static constexpr int kDepth = 2;
  static HWY_INLINE void load(const uint32_t* words, Vector* values) {
    const WordTag tag;
    const hn::Rebind<hwy::float16_t, FloatTag> fp16_tag;
    const auto pair = hn::LoadU(tag, words);
    const auto low = hn::And(pair, hn::Set(tag, 0xFFFFu));
    const auto high = hn::ShiftRight<16>(pair);
    values[0] = hn::PromoteTo(FloatTag(), hn::BitCast(fp16_tag, hn::TruncateTo(HalfTag(), low)));
    values[1] = hn::PromoteTo(FloatTag(), hn::BitCast(fp16_tag, hn::TruncateTo(HalfTag(), high)));
  }
};

struct TileArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const uint32_t* w = nullptr;
  int64_t w_stride = 0;  // words from one row of w to the next
  int64_t words = 0;     // rows of w: k / kDepth
  float* y = nullptr;
  int64_t y_stride = 0;
};

// kRows x (kVectors · kLanes). The arrays become registers because every loop over them is unrolled.
template <class Words, int kRows, int kVectors>
void tile(const TileArgs& args) {
  const FloatTag tag;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = hn::LoadU(tag, args.y + r * args.y_stride + v * kLanes);
    }
  }
  const float* x = args.x;
  const uint32_t* w = args.w;
  for (int64_t word = 0; word < args.words; ++word) {
    Vector values[kVectors][Words::kDepth];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      hwy::Prefetch(w + v * kLanes + kPrefetchBytes / 4);
      Words::load(w + v * kLanes, values[v]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < Words::kDepth; ++k) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vector factor = hn::Set(tag, x[r * args.x_stride + k]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          sum[r][v] = hn::MulAdd(factor, values[v][k], sum[r][v]);
        }
      }
    }
    x += Words::kDepth;
    w += args.w_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[r][v], tag, args.y + r * args.y_stride + v * kLanes);
    }
  }
}

// kTileColumns columns and any number of rows, in tiles of nearly equal height.
template <class Words>
void tile_rows(TileArgs args, int64_t rows) {
  using Tile = void (*)(const TileArgs&);
  constexpr Tile kTiles[] = {
      tile<Words, 1, 2>,
      tile<Words, 2, 2>,
      tile<Words, 3, 2>,
      tile<Words, 4, 2>,
      tile<Words, 5, 2>,
      tile<Words, 6, 2>,
      tile<Words, HWY_MIN(7, kMaxTileRows), 2>,
      tile<Words, HWY_MIN(8, kMaxTileRows), 2>,
      tile<Words, HWY_MIN(9, kMaxTileRows), 2>,
      tile<Words, HWY_MIN(10, kMaxTileRows), 2>,
      tile<Words, HWY_MIN(11, kMaxTileRows), 2>,
      tile<Words, kMaxTileRows, 2>,
  };
  for (int64_t tiles = (rows + kMaxTileRows - 1) / kMaxTileRows; tiles > 0; --tiles) {
    const int64_t height = (rows + tiles - 1) / tiles;
    kTiles[height - 1](args);
    rows -= height;
    args.x += height * args.x_stride;
    args.y += height * args.y_stride;
  }
}

}  // namespace trireme::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
