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

// The CUDA layout of a quantised weight (kernels/cuda/quantised.cuh): tiles of kQuantRows rows and
// whole groups of channels, then the scales of bf16. `lead`: channels of its first group before K.
constexpr int64_t kQuantGroup = 128;
constexpr int64_t kQuantRows = 16;

constexpr int64_t quantised_groups(int64_t k, int64_t lead) {
  return k == 0 ? 0 : round_up(lead + k, kQuantGroup) / kQuantGroup;
}

constexpr int64_t quantised_value_bytes(DType dtype, int64_t n, int64_t k, int64_t lead) {
  const int64_t values = round_up(n, kQuantRows) * quantised_groups(k, lead) * kQuantGroup;
  return dtype == DType::kI4 ? values / 2 : values;
}

// `first`: the weight's first channel in the whole matrix.
constexpr int64_t quantised_weight_bytes(DType dtype, int64_t n, int64_t k, int64_t first) {
  const int64_t lead = first % kQuantGroup;
  return quantised_value_bytes(dtype, n, k, lead) +
         round_up(n, kQuantRows) * quantised_groups(k, lead) * 2;
}

// ---- products of quantised weights ----

// Rows of x that one kernel takes; for more the weight becomes bf16, so many bytes of it at a time:
// what stays in the GPU's cache until it is used.
constexpr int64_t kQuantisedTokens = 64;
constexpr int64_t kUnpackedBytes = 32 << 20;

constexpr int64_t quantised_rows_at_once(int64_t n, int64_t k) {
  const int64_t fit = k == 0 ? n : kUnpackedBytes / (round_up(k, 8) * 2);
  return std::min(n, std::max<int64_t>(fit / kQuantRows, 1) * kQuantRows);
}
// That; and a row at least as it comes, of fp32.
constexpr int64_t quantised_unpacked_bytes(int64_t n, int64_t k) {
  return std::max(quantised_rows_at_once(n, k) * round_up(k, 8) * 2,
                  round_up(k + 2 * kQuantGroup, 4) * 4);
}

// How ctas share [T, N] and K: each has `rows` x `tokens` of y, its warps take `k_warps` groups at
// a time; with fewer than `ctas` of them, which fill a large GPU, several share K. That is the same
// on every GPU, so that the scratch is.
struct QuantisedGeometry {
  int64_t rows, tokens, k_warps, ctas;
};
constexpr QuantisedGeometry quantised_geometry(int64_t t) {
  if (t <= 8) return {16, 8, 8, 264};
  if (t <= 16) return {128, 16, 1, 264};
  if (t <= 32) return {128, 32, 2, 132};
  return {128, 64, 2, 132};
}
constexpr int64_t kQuantisedSplits = 8;
constexpr int64_t kQuantisedCounterBytes = 132 * 4;  // one of all ctas that share K

constexpr int64_t quantised_splits(int64_t n, int64_t k, int64_t lead, int64_t t) {
  const QuantisedGeometry geometry = quantised_geometry(t);
  const int64_t wanted =
      geometry.ctas / std::max<int64_t>(round_up(n, geometry.rows) / geometry.rows, 1);
  // Two turns of each warp at least.
  const int64_t most = quantised_groups(k, lead) / (2 * geometry.k_warps);
  return std::max<int64_t>(1, std::min({wanted, most, kQuantisedSplits}));
}

// Sums of those that share K, whatever T.
constexpr int64_t quantised_partial_bytes(int64_t n, int64_t k, int64_t lead) {
  int64_t most = 0;
  for (const int64_t t : {8, 16, 32, 64}) {
    const int64_t splits = quantised_splits(n, k, lead, t);
    if (splits == 1) continue;
    most = std::max(most, splits * round_up(n, quantised_geometry(t).rows) * t * 4);
  }
  return most;
}

// A copy of x where K or what stands before it are not whole 16 bytes.
constexpr int64_t quantised_input_bytes(int64_t k, int64_t lead) {
  if (k % 8 == 0 && lead % 8 == 0) return 0;
  return kQuantisedTokens * quantised_groups(k, lead) * kQuantGroup * 2;
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

// ---- scratch of the CUDA backend, in the GPU's memory ----

constexpr int64_t kCublasWorkspaceBytes = 32 << 20;
// Positions of a part of one sequence's context that a cta of the decode kernel takes; parts are at
// fixed positions, so that a row's bits do not depend on its company.
constexpr int32_t kSplitPositions = 256;

constexpr int64_t context_splits(int64_t indices) {
  return std::max<int64_t>(1, (indices + kSplitPositions - 1) / kSplitPositions);
}

// Of the results of parts of contexts of up to `indices` keys, before they are joined.
constexpr int64_t cuda_attention_scratch_bytes(int64_t sequences, int64_t heads, int64_t indices,
                                               int64_t head_dim) {
  const int64_t splits = context_splits(indices);
  return splits == 1 ? 0 : sequences * heads * splits * (head_dim + 2) * int64_t{sizeof(float)};
}

// A draw's rows at once, and changes of scores that it takes; more are the host's.
constexpr int64_t kRowsOfDraw = 64;
constexpr int64_t kChangesOfDraw = 1 << 16;
constexpr int64_t kDrawRowBytes = 48;
constexpr int64_t kScoreChangeBytes = 32;

// Lists of `rows` draws from `vocab` logits, their rows, changes and results.
constexpr int64_t cuda_draw_scratch_bytes(int64_t rows, int64_t vocab) {
  return round_up(rows * kDrawRowBytes, 16) + kChangesOfDraw * kScoreChangeBytes +
         round_up(rows * int64_t{sizeof(int32_t)}, 16) + std::min(rows, kRowsOfDraw) * 20 * vocab;
}

// What cuBLASLt cannot read or write where it is goes through copies: x [T, K] in another type than
// w, or of rows that are not whole 16 bytes; y [T, N] fp32 of such rows.
constexpr int64_t cuda_input_copy_bytes(DType w, int64_t t, int64_t k) {
  const bool direct = activation_dtype(w) == w && k * element_size(w) % 16 == 0;
  return direct ? 0 : t * cuda_weight_row_bytes(w, k);
}
constexpr int64_t cuda_output_copy_bytes(int64_t t, int64_t n) {
  return n % 4 == 0 ? 0 : t * round_up(n, 4) * int64_t{sizeof(float)};
}

// ---- memory of a GPU that its group's others write into, for sums (kernels/cuda/peer_sum.cu) ----

constexpr int64_t kMostPeers = 8;  // ranks of such a group
// A sum of up to so many bytes may be sent by everyone to everyone, four bytes in a word of eight.
constexpr int64_t kSumAtOnceBytes = 256 << 10;
// Others are cut into pieces of so many bytes, of which each rank sums its part.
constexpr int64_t kSumPieceBytes = 2 << 20;
constexpr int64_t kPeerCtas = 32;
// An allocation of whole ones has no other's bytes beside it, which would be shared as well.
constexpr int64_t kPeerMemoryUnit = 2 << 20;

// A counter; then a flag for each phase, cta and rank.
constexpr int64_t kPeerFlagsAt = 256;
constexpr int64_t kPeerWordsAt = kPeerFlagsAt + 2 * kPeerCtas * kMostPeers * 8;
// Words of each rank, for sums of even and of odd numbers.
constexpr int64_t peer_parts_at(int64_t ranks) {
  return kPeerWordsAt + 2 * ranks * 2 * kSumAtOnceBytes;
}
// A rank's part of a piece, in vectors of 16 bytes.
constexpr int64_t peer_part_vectors(int64_t ranks) {
  return (kSumPieceBytes / 16 + ranks - 1) / ranks;
}
// Parts, and sums of parts, for sums of even and of odd numbers. 0: such a group has no such
// memory.
constexpr int64_t peer_memory_bytes(int64_t ranks) {
  if (ranks < 2 || ranks > kMostPeers) return 0;
  return round_up(peer_parts_at(ranks) + 2 * 2 * ranks * peer_part_vectors(ranks) * 16,
                  kPeerMemoryUnit);
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
