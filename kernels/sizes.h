// SPDX-License-Identifier: Apache-2.0
// Bytes of what a backend allocates, as pure functions: the planner predicts with them what the
// worker then allocates.
#pragma once

#include <algorithm>
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

// The CUDA layout of a weight [N, K]: row-major, rows padded with zeros to whole 16 bytes.
constexpr int64_t cuda_weight_row_bytes(DType dtype, int64_t k) {
  return round_up(k * element_size(dtype), 16);
}

constexpr int64_t cuda_weight_bytes(DType dtype, int64_t n, int64_t k) {
  return n * cuda_weight_row_bytes(dtype, k);
}

// One layer's K and V: 2 x [num_blocks, kv_heads, block_size, head_dim].
constexpr int64_t kv_layer_bytes(DType dtype, int64_t num_blocks, int64_t kv_heads,
                                 int64_t block_size, int64_t head_dim) {
  return 2 * num_blocks * kv_heads * block_size * head_dim * element_size(dtype);
}

// ---- scratch of each thread of the CPU backend ----

// The block of x that a matmul copies (widened and padded), and rows of the edge of its result.
constexpr int64_t kMatmulBlockBytes = int64_t{1} << 20;
constexpr int64_t kMatmulBlockRows = 256;
// Attention takes this many (token, head) rows where the heads of a KV head are fewer, this many
// positions, and pads columns to the widest register tile.
constexpr int64_t kAttentionRows = 64;
constexpr int64_t kAttentionPositions = 64;
constexpr int64_t kAttentionColumns = 32;

constexpr int64_t matmul_scratch_bytes() {
  return kMatmulBlockBytes + kMatmulBlockRows * kPanelRows * int64_t{sizeof(float)};
}

constexpr int64_t attention_scratch_bytes(int64_t rows, int64_t head_dim) {
  const int64_t width = round_up(head_dim, kAttentionColumns);
  return ((2 * kAttentionPositions + 4 + 2 * rows) * width + rows * kAttentionPositions +
          2 * round_up(rows, 16)) *
         int64_t{sizeof(float)};
}

// `heads_of_kv`: the most query heads of the shard that read one KV head.
constexpr int64_t cpu_scratch_bytes(int64_t heads_of_kv, int64_t head_dim) {
  return std::max(matmul_scratch_bytes(),
                  attention_scratch_bytes(std::max(kAttentionRows, heads_of_kv), head_dim));
}

// ---- staging of a host communicator ----

// A sum of up to so many bytes is sent by everyone to everyone; a larger one is cut into segments
// of so many values, and each rank sums its part.
constexpr int64_t kDirectSumBytes = 32 << 10;
constexpr int64_t kSumSegment = 1 << 20;

constexpr int64_t sum_outgoing_bytes(int64_t values) {
  return std::min(values, kSumSegment) * int64_t{sizeof(float)};
}

// For any number of values up to this.
constexpr int64_t sum_incoming_bytes(int64_t values, int64_t ranks) {
  const int64_t bytes = sum_outgoing_bytes(values);
  const int64_t direct = std::min(bytes, kDirectSumBytes) * ranks;
  if (bytes <= kDirectSumBytes) return direct;
  const int64_t part = (std::min(values, kSumSegment) + ranks - 1) / ranks;
  return std::max(direct, part * ranks * int64_t{sizeof(float)});
}

}  // namespace trireme
