// SPDX-License-Identifier: Apache-2.0
// Panels of bf16 weights with VDPBF16PS: y += x[k] · w[k] + x[k + 1] · w[k + 1] in one instruction,
// which Highway 1.0 lacks. The target attribute keeps these instructions to this file's functions.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/matmul.h"
#include "kernels/sizes.h"

namespace trireme::cpu {
namespace {

constexpr int kMaxRows = 12;  // 24 accumulators, two weight vectors and the rest for the broadcasts
constexpr int64_t kPrefetchWords = 512;

[[gnu::target("avx512f,avx512bf16"), gnu::always_inline]] inline __m512i broadcast_pair(
    const uint16_t* x) {
  int32_t pair = 0;
  std::memcpy(&pair, x, sizeof(pair));
  return _mm512_set1_epi32(pair);
}

template <int kRows>
[[gnu::target("avx512f,avx512bf16")]] void tile(const PanelArgs& args, int64_t first_row) {
  __m512 sum[kRows][2];
  float* y = args.y + first_row * args.y_stride;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = _mm512_loadu_ps(y + r * args.y_stride);
    sum[r][1] = _mm512_loadu_ps(y + r * args.y_stride + 16);
  }
  const auto* x = static_cast<const uint16_t*>(args.x) + first_row * args.x_stride;
  const auto* w = static_cast<const uint32_t*>(args.w);
  for (int64_t k = 0; k < args.depth; k += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchWords), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchWords + 16), _MM_HINT_T0);
    const auto left = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w));
    const auto right = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + 16));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto factor = reinterpret_cast<__m512bh>(broadcast_pair(x + r * args.x_stride + k));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], factor, left);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], factor, right);
    }
    w += kPanelRows;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(y + r * args.y_stride, sum[r][0]);
    _mm512_storeu_ps(y + r * args.y_stride + 16, sum[r][1]);
  }
}

using Tile = void (*)(const PanelArgs& args, int64_t first_row);
constexpr Tile kTiles[kMaxRows] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                   tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

}  // namespace

void panel_avx512_bf16(const PanelArgs& args) {
  int64_t row = 0;
  for (int64_t tiles = (args.rows + kMaxRows - 1) / kMaxRows; tiles > 0; --tiles) {
    const int64_t height = (args.rows - row + tiles - 1) / tiles;
    kTiles[height - 1](args, row);
    row += height;
  }
}

}  // namespace trireme::cpu
