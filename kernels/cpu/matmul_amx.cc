// SPDX-License-Identifier: Apache-2.0
// Panels of bf16 weights on AMX tiles: 16 rows x 32 k times 32 k x 16 columns in one TDPBF16PS.
//
// Tiles serve every number of rows, one included, so that a row does not depend on its company; a
// partly filled tile is a matter of the tile configuration. For 32 rows and the 32 columns of a
// panel:
//     tile 6 7   w: columns 0-15, 16-31
// 4   tile 0 1   y: rows 0-15
// 5   tile 2 3   y: rows 16-31
// x
#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/matmul.h"
#include "kernels/sizes.h"

namespace trireme::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kWeightStride = kPanelRows * 4;   // bytes from one pair of k to the next
constexpr int64_t kStepBytes = 16 * kWeightStride;  // the weights of 32 k
constexpr int64_t kPrefetchBytes = 2048;

// The 64 bytes that LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// rows: of the 32 in the picture above.
[[gnu::target("amx-tile")]] void configure(int64_t rows) {
  TileConfig config;
  const auto upper = static_cast<uint8_t>(std::min(rows, kTileRows));
  // An empty tile would fault; the kernel for up to 16 rows does not touch the lower ones.
  const auto lower = static_cast<uint8_t>(std::max<int64_t>(rows - kTileRows, 1));
  const uint8_t tile_rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
  std::copy(tile_rows, tile_rows + 8, config.rows);
  std::fill(config.row_bytes, config.row_bytes + 8, uint16_t{64});
  // The compiler's intrinsic says that it reads 8 bytes only: make it store them all.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// With few rows the weights' way from memory is all that counts. A tile load takes every other line
// and keeps few in flight; plain loads in order, with the prefetch before them, bring an eighth
// more.
[[gnu::target("avx512f"), gnu::always_inline]] inline void touch_step(const std::byte* w) {
  for (int64_t line = 0; line < kStepBytes; line += 64) {
    _mm_prefetch(w + kPrefetchBytes + line, _MM_HINT_T0);
    asm volatile("" ::"v"(_mm512_loadu_si512(w + line)));
  }
}

[[gnu::target("avx512f,amx-tile,amx-bf16")]] void multiply_16(const PanelArgs& args,
                                                              const uint16_t* x, float* y) {
  const int64_t y_bytes = args.y_stride * 4;
  const int64_t x_bytes = args.x_stride * 2;
  const auto* w = static_cast<const std::byte*>(args.w);
  _tile_loadd(0, y, y_bytes);
  _tile_loadd(1, y + 16, y_bytes);
  for (int64_t k = 0; k < args.depth; k += kPanelDepth) {
    touch_step(w);
    _tile_loadd(4, x + k, x_bytes);
    _tile_loadd(6, w, kWeightStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + 64, kWeightStride);
    _tile_dpbf16ps(1, 4, 7);
    w += kStepBytes;
  }
  _tile_stored(0, y, y_bytes);
  _tile_stored(1, y + 16, y_bytes);
}

// What a block of rows fetches to the second-level cache for the next panel while it multiplies.
struct Ahead {
  const std::byte* w = nullptr;
  int64_t step_bytes = 0;  // in each step of 32 k
};

[[gnu::target("amx-tile,amx-bf16")]] void multiply_32(const PanelArgs& args, const uint16_t* x,
                                                      float* y, Ahead ahead) {
  const int64_t y_bytes = args.y_stride * 4;
  const int64_t x_bytes = args.x_stride * 2;
  const auto* w = static_cast<const std::byte*>(args.w);
  const uint16_t* x_lower = x + kTileRows * args.x_stride;
  float* y_lower = y + kTileRows * args.y_stride;
  _tile_loadd(0, y, y_bytes);
  _tile_loadd(1, y + 16, y_bytes);
  _tile_loadd(2, y_lower, y_bytes);
  _tile_loadd(3, y_lower + 16, y_bytes);
  for (int64_t k = 0; k < args.depth; k += kPanelDepth) {
    _tile_loadd(6, w, kWeightStride);
    _tile_loadd(4, x + k, x_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + 64, kWeightStride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x_lower + k, x_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    for (int64_t line = 0; line < ahead.step_bytes; line += 64) {
      _mm_prefetch(ahead.w + line, _MM_HINT_T1);
    }
    ahead.w += ahead.step_bytes;
    w += kStepBytes;
  }
  _tile_stored(0, y, y_bytes);
  _tile_stored(1, y + 16, y_bytes);
  _tile_stored(2, y_lower, y_bytes);
  _tile_stored(3, y_lower + 16, y_bytes);
}

}  // namespace

[[gnu::target("amx-tile")]] void panel_amx(const PanelArgs& args) {
  const auto* x = static_cast<const uint16_t*>(args.x);
  const int64_t blocks = (args.rows + 2 * kTileRows - 1) / (2 * kTileRows);
  Ahead ahead = {static_cast<const std::byte*>(args.next_w), kStepBytes / blocks / 64 * 64};
  int64_t configured = 0;
  for (int64_t row = 0; row < args.rows; row += 2 * kTileRows) {
    const int64_t rows = std::min(args.rows - row, 2 * kTileRows);
    if (rows != configured) configure(rows);
    configured = rows;
    float* y = args.y + row * args.y_stride;
    if (rows > kTileRows) {
      multiply_32(args, x + row * args.x_stride, y, ahead);
      ahead.w += args.depth / kPanelDepth * ahead.step_bytes;
    } else {
      multiply_16(args, x + row * args.x_stride, y);
    }
  }
  _tile_release();  // live tiles would cost 8 KiB at every context switch
}

}  // namespace trireme::cpu
