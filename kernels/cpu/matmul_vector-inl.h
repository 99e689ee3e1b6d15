// SPDX-License-Identifier: Apache-2.0
// Panel kernels with fp32 products, once per Highway target (see vector_targets.h).
#include <algorithm>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/sizes.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::cpu::HWY_NAMESPACE {

// Words of k that are finished for all rows before the next: 32 KiB of weights, which every tile but
// the first then finds in the L1 cache.
constexpr int64_t kStripWords = 256;

template <class Words>
void panel(const PanelArgs& args) {
  const int64_t all_words = args.depth / Words::kDepth;
  TileArgs tile_args;
  tile_args.x_stride = args.x_stride;
  tile_args.w_stride = kPanelRows;
  tile_args.y_stride = args.y_stride;
  const bool whole = args.rows <= kMaxTileRows / 2;  // one tile covers all rows: no strips needed
  const int64_t strip = whole ? all_words : kStripWords;
  for (int64_t word = 0; word < all_words; word += strip) {
    tile_args.x = static_cast<const float*>(args.x) + word * Words::kDepth;
    tile_args.words = std::min(strip, all_words - word);
    for (int64_t column = 0; column < kPanelRows; column += kTileColumns) {
      tile_args.w = static_cast<const uint32_t*>(args.w) + word * kPanelRows + column;
      tile_args.y = args.y + column;
      tile_rows<Words>(tile_args, args.rows);
    }
  }
}

inline PanelKernel panel_kernel(DType weights) {
  switch (weights) {
    case DType::kF32: return panel<Fp32Words>;
    case DType::kBF16: return panel<Bf16Words>;
    case DType::kF16: return panel<Fp16Words>;
    case DType::kI32: break;
  }
  return nullptr;
}

}  // namespace trireme::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
