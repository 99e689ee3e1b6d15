// SPDX-License-Identifier: Apache-2.0
// What flash.cu and flash_decode.cu share: the rows of a warp, and tiles of keys and values on
// their way into shared memory. Scores and sums are fp32, probabilities bf16.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace trireme::cuda {

constexpr int kTile = 64;      // keys of a tile
constexpr int kWarpRows = 16;  // rows of a warp: an MMA's
constexpr int kPad = 8;        // elements between rows in shared memory: no two rows on one bank
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
template <int kD, int kChannels = kD>
struct Rows {
  uint32_t q[kD / 16][4];
  float y[kChannels / 8][4];               // of kChannels of the kD channels
  float most[2] = {-INFINITY, -INFINITY};  // largest score so far
  float weight[2] = {0, 0};                // Σ exp(score - most), of this lane's columns
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

// Where the keys of a tile stand, in elements from the start of the cache or of the prefix: a lane
// knows two of them, and asks the others. Keys that no row sees stand nowhere, -1.
struct Places {
  int64_t near, far;  // keys lane, and lane + 32

  __device__ Places(const AttentionView& view, const Work& work, int32_t first) {
    near = place(view, work, first + static_cast<int32_t>(threadIdx.x) % kWarp);
    far = place(view, work, first + static_cast<int32_t>(threadIdx.x) % kWarp + kWarp);
  }
  // REQUIRES: the warp asks for keys of one half together.
  __device__ int64_t of(int key) const {
    return __shfl_sync(0xFFFFFFFFu, key < kWarp ? near : far, key % kWarp);
  }

 private:
  __device__ static int64_t place(const AttentionView& view, const Work& work, int32_t index) {
    if (index >= work.index_end) return -1;
    if (index < view.prefix) {
      return (int64_t{work.kv_head} * view.prefix + index) * view.head_dim;
    }
    if (index < work.first_seen) return -1;
    return view.cache_row(work.sequence, work.kv_head, index - view.prefix);
  }
};

// Queues the copy of a tile of K or V. Keys that no row sees become zeros: what stands there may be
// no number, and no weight would make it vanish.
template <int kD, int kThreads>
__device__ void fetch(__nv_bfloat16* tile, const AttentionView& view, const Places& places,
                      const void* cache, const void* before, int32_t first) {
  constexpr int kPieces = kD / 8;
  static_assert(kTile == 2 * kWarp && kTile * kPieces % kThreads == 0);
  const auto* rows = static_cast<const __nv_bfloat16*>(cache);
  const auto* prefix_rows = static_cast<const __nv_bfloat16*>(before);
#pragma unroll 8
  for (int i = threadIdx.x; i < kTile * kPieces; i += kThreads) {
    const int key = i / kPieces;
    const int channel = i % kPieces * 8;
    const int64_t place = places.of(key);
    const bool present = place >= 0 && channel < view.head_dim;
    const __nv_bfloat16* from = first + key < view.prefix ? prefix_rows : rows;
    copy_async(tile + key * (kD + kPad) + channel, present ? from + place + channel : rows,
               present);
  }
}

// Scores of 16 rows x kKeys keys, which begin at `keys`: s[n] are keys 8n to 8n + 7.
template <int kKeys, int kD, int kChannels>
__device__ void multiply_keys(float (&s)[kKeys / 8][4], const Rows<kD, kChannels>& rows,
                              const __nv_bfloat16* keys) {
  const int lane = threadIdx.x % kWarp;
  const __nv_bfloat16* at = keys + (lane / 16 * 8 + lane % 8) * (kD + kPad) + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kKeys / 8; n += 2) {
#pragma unroll
    for (int chunk = 0; chunk < kD / 16; ++chunk) {
      uint32_t b[4];
      load_matrices(b, at + n * 8 * (kD + kPad) + chunk * 16);
      multiply(s[n], rows.q[chunk], b[0], b[1]);
      multiply(s[n + 1], rows.q[chunk], b[2], b[3]);
    }
  }
}

// Products become scores, of keys that the row does not see -inf; `most` is raised to the largest
// of this lane's columns. `first`: the index of the first key.
template <int kKeys, int kD, int kChannels>
__device__ void mask_scores(float (&s)[kKeys / 8][4], float (&most)[2],
                            const Rows<kD, kChannels>& rows, const AttentionView& view,
                            int32_t first, int32_t index_end) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int side = i / 2;
      const int32_t index = first + n * 8 + lane % 4 * 2 + i % 2;
      const bool seen =
          rows.row[side] >= 0 && index < index_end && view.sees(rows.position[side], index);
      s[n][i] = seen ? view.score(s[n][i]) : -INFINITY;
      most[side] = fmaxf(most[side], s[n][i]);
    }
  }
}

// `most` is the row's largest score from here on; y and weight follow. Returns what to take off
// scores before they are exponents.
template <int kD, int kChannels>
__device__ float raise_most(Rows<kD, kChannels>& rows, int side, float most) {
  const float base = most == -INFINITY ? 0 : most;  // nothing seen yet
  const float factor = exp2f((rows.most[side] - base) * kLog2E);
  rows.most[side] = most;
  rows.weight[side] *= factor;
#pragma unroll
  for (auto& part : rows.y) {
    part[2 * side] *= factor;
    part[2 * side + 1] *= factor;
  }
  return base;
}

// y += p · V of 16 keys: p as an A fragment, `at` where this lane's part of their values begins.
template <int kD, int kChannels>
__device__ void add_values(Rows<kD, kChannels>& rows, const uint32_t (&p)[4],
                           const __nv_bfloat16* at) {
#pragma unroll
  for (int n = 0; n < kChannels / 8; n += 2) {
    uint32_t b[4];
    load_transposed(b, at + n * 8);
    multiply(rows.y[n], p, b[0], b[1]);
    multiply(rows.y[n + 1], p, b[2], b[3]);
  }
}

// first_channel: of what this warp has of y. weights: of rows g and g + 8, of all keys.
template <int kD, int kChannels>
__device__ void write(const Rows<kD, kChannels>& rows, const float (&weights)[2], int first_channel,
                      const AttentionView& view, const Work& work, bool split_up, int32_t split) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const float weight = weights[side];
    if (rows.row[side] < 0) continue;
    const int32_t head = work.head_of(rows.row[side]);
    float* part = split_up ? view.part(work.sequence, head, split) : nullptr;
    const float divisor = split_up || weight == 0 ? 1.0f : weight;  // join_kernel's bits
#pragma unroll
    for (int n = 0; n < kChannels / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = first_channel + n * 8 + lane % 4 * 2 + i;
        if (channel >= view.head_dim) continue;
        const float value = rows.y[n][2 * side + i] / divisor;
        if (split_up) {
          part[channel] = value;
        } else {
          view.store(work.token_of(rows.row[side]), head, channel, value);
        }
      }
    }
    if (split_up && first_channel == 0 && lane % 4 == 0) {
      part[view.head_dim] = rows.most[side];
      part[view.head_dim + 1] = weight;
    }
  }
}

// The first tile from `first` on that some row of the cta sees a key of.
__device__ inline int32_t next_tile(const AttentionView& view, const Work& work, int32_t first) {
  if (first < view.prefix || work.first_seen <= first) return first;
  return first + (work.first_seen - first) / kTile * kTile;
}

// flash_decode.cu: for sequences with one query.
void flash_decode(cudaStream_t stream, const AttentionView& view, int32_t sequences);

}  // namespace trireme::cuda
