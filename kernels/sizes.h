// SPDX-License-Identifier: Apache-2.0
// Bytes of what a backend allocates, as pure functions: the planner predicts with them what the
// worker then allocates.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace trireme {

// The CPU layout of a weight [N, K]: panels of kPanelRows rows of N, inside a panel K-major, and
// for 16-bit types two neighbouring k beside each other: [ceil(N/32)][ceil(K/32)·16][32][2] (fp32:
// [K][32]). N is padded to kPanelRows, K to kPanelDepth; padding is zero. One layout serves every
// ISA path, AMX tiles included.
constexpr int64_t kPanelRows = 32;
constexpr int64_t kPanelDepth = 32;

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

constexpr int64_t packed_weight_bytes(DType dtype, int64_t n, int64_t k) {
  return round_up(n, kPanelRows) * round_up(k, kPanelDepth) * element_size(dtype);
}

// One layer's K and V: 2 x [num_blocks, kv_heads, block_size, head_dim].
constexpr int64_t kv_layer_bytes(DType dtype, int64_t num_blocks, int64_t kv_heads,
                                 int64_t block_size, int64_t head_dim) {
  return 2 * num_blocks * kv_heads * block_size * head_dim * element_size(dtype);
}

}  // namespace trireme
