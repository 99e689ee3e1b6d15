// SPDX-License-Identifier: Apache-2.0
// What flash.cu and flash_decode.cu share: the rows of a warp, and where keys stand. Scores and
// sums are fp32, probabilities bf16. Scores are times log2(e), so that exp2f() gives the
// exponentials.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace trireme::cuda {

constexpr int kTile = 64;      // keys of a tile
constexpr int kWarpRows = 16;  // rows of a warp: an MMA's
constexpr float kLog2E = 1.4426950408889634f;

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  __builtin_memcpy(&bits, &both, sizeof(bits));
  return bits;
}

// Over the four lanes that share a row.
__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  return value + __shfl_xor_sync(0xFFFFFFFFu, value, 2);
}

__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, 2));
}

// What a cta works on: rows [row_begin, row_begin + 16 · kWarps) of one sequence and KV head, keys
// [index_begin, index_end).
struct Work {
  int32_t sequence, kv_head;
  int32_t first_token, queries, context;
  int32_t first_head, num_group;  // query heads that share the KV head
  int32_t row_begin, num_rows;
  int32_t index_begin, index_end;
  int32_t first_seen;  // no row sees a key between the prefix and this index

  __device__ int32_t token_of(int32_t row) const { return first_token + row / num_group; }
  __device__ int32_t head_of(int32_t row) const { return first_head + row % num_group; }
  __device__ int32_t position_of(int32_t row) const { return context - queries + row / num_group; }
};

// One lane's share of its warp's 16 rows: rows g and g + 8, where g = lane / 4 (PTX ISA, fragments
// of m16n8k16).
template <int kD>
struct Rows {
  uint32_t q[kD / 16][4];
  float y[kD / 8][4];
  float most[2] = {-INFINITY, -INFINITY};  // largest score so far
  float weight[2] = {0, 0};                // Σ exp2(score - most), of this lane's columns
  int32_t row[2];                          // -1: no such row
  int32_t position[2];

  __device__ Rows(const AttentionView& view, const Work& work, int32_t first) {
    const int lane = threadIdx.x % kWarp;
    const float* from[2];
    for (int side = 0; side < 2; ++side) {
      const int32_t at = first + lane / 4 + side * 8;
      row[side] = at < work.num_rows ? at : -1;
      position[side] = row[side] < 0 ? -1 : work.position_of(at);
      from[side] = row[side] < 0 ? nullptr
                                 : view.q + work.token_of(at) * view.q_stride +
                                       int64_t{work.head_of(at)} * view.head_dim;
    }
    const auto element = [&](int side, int channel) {
      return from[side] != nullptr && channel < view.head_dim ? from[side][channel] : 0.0f;
    };
#pragma unroll
    for (int chunk = 0; chunk < kD / 16; ++chunk) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // rows g, g + 8, g, g + 8; channels from 2t, and from 2t + 8
        const int channel = chunk * 16 + lane % 4 * 2 + i / 2 * 8;
        q[chunk][i] = pack(element(i % 2, channel), element(i % 2, channel + 1));
      }
    }
#pragma unroll
    for (auto& part : y) {
#pragma unroll
      for (float& value : part) value = 0;
    }
  }
};

// Where a key stands, in elements from the start of the cache or of the prefix; -1, nowhere, if no
// row sees it.
__device__ inline int64_t place_of(const AttentionView& view, const Work& work, int32_t index) {
  if (index >= work.index_end) return -1;
  if (index < view.prefix) return (int64_t{work.kv_head} * view.prefix + index) * view.head_dim;
  if (index < work.first_seen) return -1;
  return view.cache_row(work.sequence, work.kv_head, index - view.prefix);
}

// What is taken off scores before they are exponents: their largest, if any was seen.
__device__ inline float base_of(float most) { return most == -INFINITY ? 0 : most; }

// `most` is the row's largest score from here on; y and weight follow. Returns what to take off
// scores before they are exponents.
template <int kD>
__device__ float raise_most(Rows<kD>& rows, int side, float most) {
  const float base = base_of(most);
  const float factor = exp2f(rows.most[side] - base);
  rows.most[side] = most;
  rows.weight[side] *= factor;
#pragma unroll
  for (auto& part : rows.y) {
    part[2 * side] *= factor;
    part[2 * side + 1] *= factor;
  }
  return base;
}

// The first tile from `first` on that some row of the cta sees a key of.
__device__ inline int32_t next_tile(const AttentionView& view, const Work& work, int32_t first) {
  if (first < view.prefix || work.first_seen <= first) return first;
  return first + (work.first_seen - first) / kTile * kTile;
}

// flash_decode.cu: for sequences with one query.
void flash_decode(cudaStream_t stream, const AttentionView& view, int32_t sequences);

}  // namespace trireme::cuda
