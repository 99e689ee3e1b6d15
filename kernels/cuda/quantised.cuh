// SPDX-License-Identifier: Apache-2.0
// Weights of int8 and int4 as quantise.cu writes them and tensor cores take them.
//
// Rows stand in tiles of 16, channels in groups of 128 that share a scale, and a group in chunks of
// 64: what one warp multiplies at a time, as the A operand of four m16n8k16. A lane (g = lane / 4,
// t = lane % 4) holds of rows g and g + 8 the channels 8t to 8t + 7 of both halves of a chunk, so
// that eight neighbours of an input are its B operands; which k of an MMA a channel is does not
// matter as long as both operands agree. All of a lane stands in 16 bytes of int4, or twice 16 of
// int8, and a warp reads 512 bytes in a row:
//   [tile][chunk][half of int8][lane][16 bytes]
// int4: a word is q + 8 of eight channels of a row, pair p in nibbles p and p + 4; words (half 0,
// row g), (half 0, row g + 8), (half 1, row g), (half 1, row g + 8). int8: a word is two pairs, in
// bytes 0 and 2, and 1 and 3; two words of row g, two of row g + 8. Scales, bf16:
// [tile][group][g][rows g and g + 8].
//
// Integers become bf16 by bits alone, as Kim et al. 2022 ("Who says elephants can't run") and
// Marlin (Frantar et al. 2024) do it: 0x4300 is 128, whose last place is 1, so 0x4300 | u is 128 +
// u for u below 128.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/sizes.h"

namespace trireme::cuda {

constexpr int kChunk = 64;
constexpr int kChunksOfGroup = kQuantGroup / kChunk;

// A weight in device code.
struct QuantisedView {
  uint4* values;
  uint32_t* scales;
  int32_t n, k, lead, groups, tiles;

  explicit QuantisedView(const Weight& w)
      : values(static_cast<uint4*>(w.storage.data())),
        scales(reinterpret_cast<uint32_t*>(static_cast<std::byte*>(w.storage.data()) +
                                           quantised_value_bytes(w.dtype, w.n, w.k, w.lead))),
        n(static_cast<int32_t>(w.n)),
        k(static_cast<int32_t>(w.k)),
        lead(static_cast<int32_t>(w.lead)),
        groups(static_cast<int32_t>(quantised_groups(w.k, w.lead))),
        tiles(static_cast<int32_t>(round_up(w.n, kQuantRows) / kQuantRows)) {}

  // 16-byte parts of a lane in a chunk are 32 apart.
  template <int kBits>
  __device__ uint4* chunk(int32_t tile, int32_t index, int lane) const {
    return values + (int64_t{tile} * groups * kChunksOfGroup + index) * (kBits / 4 * 32) + lane;
  }
  // Of rows g (low half) and g + 8.
  __device__ uint32_t* scale(int32_t tile, int32_t group, int g) const {
    return scales + (int64_t{tile} * groups + group) * 8 + g;
  }
};

// One lane's share of a chunk.
template <int kBits>
struct Chunk {
  uint4 parts[kBits / 4];
};

__device__ inline float low_bf16(uint32_t pair) {
  const uint32_t bits = pair << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

__device__ inline float high_bf16(uint32_t pair) {
  const uint32_t bits = pair & 0xFFFF0000u;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// a - b of both halves.
__device__ inline uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  __nv_bfloat162 x, y;
  __builtin_memcpy(static_cast<void*>(&x), &a, sizeof(x));
  __builtin_memcpy(static_cast<void*>(&y), &b, sizeof(y));
  const __nv_bfloat162 difference = __hsub2(x, y);
  uint32_t bits;
  __builtin_memcpy(&bits, &difference, sizeof(bits));
  return bits;
}

// Pair `index` of a word of int4: q + 8 in 0 to 15.
__device__ inline uint32_t pair_of_int4(uint32_t word, int index) {
  return subtract_bf16((word >> (4 * index) & 0x000F000Fu) | 0x43004300u, 0x43084308u);
}

// Pair `index` of a word of int8 in two's complement: its low 7 bits, less 128 where the sign is
// set; 0x4380 is 256.
__device__ inline uint32_t pair_of_int8(uint32_t word, int index) {
  const uint32_t bytes = word >> (8 * index);
  return subtract_bf16((bytes & 0x007F007Fu) | 0x43004300u, (bytes & 0x00800080u) | 0x43004300u);
}

// The A operands of a chunk's four MMAs, integers as bf16 (mma.cuh says whose).
__device__ inline void unpack(uint32_t (&a)[4][4], const Chunk<4>& chunk) {
  const uint4& words = chunk.parts[0];
  const uint32_t of[2][2] = {{words.x, words.y}, {words.z, words.w}};  // half, row
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[step][i] = pair_of_int4(of[step / 2][i % 2], step % 2 * 2 + i / 2);
  }
}

__device__ inline void unpack(uint32_t (&a)[4][4], const Chunk<8>& chunk) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint4& words = chunk.parts[step / 2];
    const uint32_t of[2] = {step % 2 == 0 ? words.x : words.y, step % 2 == 0 ? words.z : words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = pair_of_int8(of[i % 2], i / 2);
  }
}

}  // namespace trireme::cuda
