// SPDX-License-Identifier: Apache-2.0
// The packed layout of a weight (kernels/sizes.h): writing rows into it and reading one back.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/base/team.h"
#include "kernels/sizes.h"

namespace trireme::cpu {

// In both layouts a panel is [words][32] of 32-bit words: one fp32 element, or a pair of
// neighbouring k of 16 bits. So one routine packs all types.
inline int64_t words_of_panel_row(const Weight& w) {
  return round_up(w.k, kPanelDepth) * element_size(w.dtype) / 4;
}

// Bytes from one panel to the next.
inline int64_t panel_bytes(const Weight& w) { return words_of_panel_row(w) * kPanelRows * 4; }

// rows [r, K] of w.dtype, already checked, to rows [row, row + r) of w.
void pack_rows(const Weight& w, int64_t row, const Tensor& rows, Team& team);

// y[0, K) = row of w as fp32.
void unpack_row(float* y, const Weight& w, int64_t row);

}  // namespace trireme::cpu
