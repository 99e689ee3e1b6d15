// SPDX-License-Identifier: Apache-2.0
// Rows of a matrix to int8 or int4 and back.
//
// quantise, of each row and each group of 128 channels (Backend::make_quantised):
//   scale = bf16(max |w| / m),  q = round(w / scale)
// 16 lanes a group, 8 channels a lane, which are one or two whole words of the layout: rows may
// come in any order. Reads each value once, writes 1 or 1/2 byte of it.
//
// dequantise: y = bf16(q · scale), one warp a chunk of 16 rows x 64 channels. Reads 1 or 1/2 byte a
// value, writes 2.
#include <cfloat>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/quantised.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLaneChannels = 8;
constexpr int kGroupLanes = kQuantGroup / kLaneChannels;

struct Scale {
  float value;
  float inverse;
};

// largest: of |w|; infinite if a value is not finite, which must show in every product.
template <int kBits>
__device__ Scale scale_of(float largest) {
  constexpr float kLeast = 1.17549435e-38f;  // its inverse is finite
  if (!(largest <= FLT_MAX)) return {NAN, 0};
  const float exact = largest / static_cast<float>((1 << (kBits - 1)) - 1);
  const float value = to_float(from_float<__nv_bfloat16>(exact));
  if (value < kLeast) return {0, 0};
  return {value, 1 / value};
}

template <int kBits>
__device__ int quantised(float w, float inverse) {
  constexpr float kMost = (1 << (kBits - 1)) - 1;
  return static_cast<int>(fminf(fmaxf(rintf(w * inverse), -kMost), kMost));
}

__device__ void store_words(uint4* part, int side, const int (&q)[kLaneChannels], Chunk<4>*,
                            int half) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    word |= static_cast<uint32_t>(q[i] + 8) << (4 * (i / 2 + i % 2 * 4));
  }
  reinterpret_cast<uint32_t*>(part)[2 * half + side] = word;
}

__device__ void store_words(uint4* part, int side, const int (&q)[kLaneChannels], Chunk<8>*,
                            int half) {
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    words[i / 4] |= (static_cast<uint32_t>(q[i]) & 0xFFu) << (8 * (i / 2 % 2 + i % 2 * 2));
  }
  auto* to = reinterpret_cast<uint32_t*>(part + half * kWarp) + 2 * side;
  to[0] = words[0];
  to[1] = words[1];
}

// rows [count, lead + K + tail] of E; they become rows [first, first + count) of w.
template <int kBits, typename E>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(QuantisedView w, int64_t first, const E* rows, int64_t stride, int64_t count,
                    int64_t cols) {
  begin();
  const int64_t unit = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kGroupLanes;
  const bool present = unit < count * w.groups;
  const int64_t from = unit / w.groups;
  const auto group = static_cast<int32_t>(unit % w.groups);
  const int part = threadIdx.x % kGroupLanes;
  const int32_t channel = group * static_cast<int32_t>(kQuantGroup) + part * kLaneChannels;
  float values[kLaneChannels];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    const bool there = present && channel + i < cols;
    values[i] = there ? to_float(rows[from * stride + channel + i]) : 0.0f;
    const float size = fabsf(values[i]);
    largest = size <= FLT_MAX ? fmaxf(largest, size) : INFINITY;
  }
#pragma unroll
  for (int offset = kGroupLanes / 2; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, offset));
  }
  if (!present) return;
  const Scale scale = scale_of<kBits>(largest);
  int q[kLaneChannels];
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    const bool own = channel + i >= w.lead && channel + i < w.lead + w.k;
    q[i] = own ? quantised<kBits>(values[i], scale.inverse) : 0;
  }
  const int64_t row = first + from;
  const auto tile = static_cast<int32_t>(row / kQuantRows);
  const int g = static_cast<int>(row % 8);
  const int side = static_cast<int>(row % kQuantRows) / 8;
  const int32_t chunk = group * kChunksOfGroup + part / 8;
  store_words(w.template chunk<kBits>(tile, chunk, 4 * g + part % 4), side, q,
              static_cast<Chunk<kBits>*>(nullptr), part / 4 % 2);
  if (part == 0) {
    reinterpret_cast<__nv_bfloat16*>(w.scale(tile, group, g))[side] =
        from_float<__nv_bfloat16>(scale.value);
  }
}

// The two halves times a scale, each rounded once.
__device__ uint32_t scaled(uint32_t pair, float scale) {
  const __nv_bfloat162 both =
      __floats2bfloat162_rn(low_bf16(pair) * scale, high_bf16(pair) * scale);
  uint32_t bits;
  __builtin_memcpy(&bits, &both, sizeof(bits));
  return bits;
}

// y [count, K] bf16 = rows [16 · first_tile, …) of w. grid (ceil(chunks / warps), tiles).
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(__nv_bfloat16* y, int64_t stride, QuantisedView w, int64_t first_tile,
                      int64_t count) {
  begin();
  const auto index = static_cast<int32_t>(blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp);
  if (index >= w.groups * kChunksOfGroup) return;
  const int lane = threadIdx.x % kWarp;
  const auto tile = static_cast<int32_t>(first_tile + blockIdx.y);
  const uint4* at = w.chunk<kBits>(tile, index, lane);
  Chunk<kBits> chunk;
#pragma unroll
  for (int i = 0; i < kBits / 4; ++i) chunk.parts[i] = __ldcs(at + i * kWarp);
  uint32_t a[4][4];
  unpack(a, chunk);
  const uint32_t scales = *w.scale(tile, index / kChunksOfGroup, lane / 4);
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) {  // half, side
    const int half = piece / 2, side = piece % 2;
    const int64_t row = int64_t{blockIdx.y} * kQuantRows + lane / 4 + side * 8;
    if (row >= count) continue;
    const float scale = side == 0 ? low_bf16(scales) : high_bf16(scales);
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = scaled(a[2 * half + i / 2][side + i % 2 * 2], scale);
    const int32_t channel = index * kChunk + half * 32 + lane % 4 * kLaneChannels - w.lead;
    __nv_bfloat16* to = y + row * stride;
    if (w.lead % kLaneChannels == 0 && channel >= 0 && channel + kLaneChannels <= w.k) {
      *reinterpret_cast<uint4*>(to + channel) = {pairs[0], pairs[1], pairs[2], pairs[3]};
      continue;
    }
    for (int i = 0; i < kLaneChannels; ++i) {
      if (channel + i < 0 || channel + i >= w.k) continue;
      to[channel + i] =
          from_float<__nv_bfloat16>(i % 2 == 0 ? low_bf16(pairs[i / 2]) : high_bf16(pairs[i / 2]));
    }
  }
}

template <int kBits, typename E>
void launch_quantise(cudaStream_t stream, const Weight& w, int64_t row, const Tensor& rows) {
  const QuantisedView view(w);
  const int64_t lanes = rows.rows * view.groups * kGroupLanes;
  launch(quantise_kernel<kBits, E>, dim3(static_cast<unsigned>((lanes + kThreads - 1) / kThreads)),
         kThreads, 0, stream, view, row, static_cast<const E*>(rows.data), rows.stride, rows.rows,
         rows.cols);
}

template <int kBits>
void quantise_rows(cudaStream_t stream, const Weight& w, int64_t row, const Tensor& rows) {
  switch (rows.dtype) {
    case DType::kF32: return launch_quantise<kBits, float>(stream, w, row, rows);
    case DType::kBF16: return launch_quantise<kBits, __nv_bfloat16>(stream, w, row, rows);
    case DType::kF16: return launch_quantise<kBits, __half>(stream, w, row, rows);
    default: return;
  }
}

template <int kBits>
void dequantise_rows(cudaStream_t stream, const Tensor& y, const Weight& w, int64_t row) {
  const QuantisedView view(w);
  constexpr int64_t kWarps = kThreads / kWarp;
  const auto ctas = static_cast<unsigned>((view.groups * kChunksOfGroup + kWarps - 1) / kWarps);
  const auto tiles = static_cast<unsigned>((y.rows + kQuantRows - 1) / kQuantRows);
  launch(dequantise_kernel<kBits>, dim3(ctas, tiles), kThreads, 0, stream,
         static_cast<__nv_bfloat16*>(y.data), y.stride, view, row / kQuantRows, y.rows);
}

}  // namespace

void quantise(cudaStream_t stream, const Weight& w, int64_t row, const Tensor& rows) {
  (w.dtype == DType::kI4 ? quantise_rows<4> : quantise_rows<8>)(stream, w, row, rows);
}

void dequantise(cudaStream_t stream, const Tensor& y, const Weight& w, int64_t row) {
  (w.dtype == DType::kI4 ? dequantise_rows<4> : dequantise_rows<8>)(stream, y, w, row);
}

}  // namespace trireme::cuda
