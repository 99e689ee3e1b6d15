// SPDX-License-Identifier: Apache-2.0
// Attention of chunks on tensor cores over a paged cache of bf16 (FlashAttention-2, Dao 2023);
// flash_decode.cu has sequences with one query.
//
// A warp has 16 rows: their queries as A fragments, their running result as fp32 accumulators. A
// cta of four warps walks over the keys in tiles of 64: a tile of K and one of V in shared memory,
// the next K on its way while V is used, and the other way round. Each byte of K and V is read once
// for all rows of the cta. Grid (tiles of rows, K, S). A row's bits depend on whether its sequence
// decodes, not on other sequences.
#include <algorithm>

#include "kernels/cuda/flash.cuh"

namespace trireme::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kPad = 8;  // elements between rows in shared memory: no two rows on one bank

// The places of a tile's keys: a lane knows two of them, and asks the others.
struct Places {
  int64_t near, far;  // keys lane, and lane + 32

  __device__ Places(const AttentionView& view, const Work& work, int32_t first) {
    near = place_of(view, work, first + static_cast<int32_t>(threadIdx.x) % kWarp);
    far = place_of(view, work, first + static_cast<int32_t>(threadIdx.x) % kWarp + kWarp);
  }
  // REQUIRES: the warp asks for keys of one half together.
  __device__ int64_t of(int key) const {
    return __shfl_sync(0xFFFFFFFFu, key < kWarp ? near : far, key % kWarp);
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

// Scores of 16 rows and a tile of keys: s[n] are keys 8n to 8n + 7.
template <int kD>
__device__ void multiply_keys(float (&s)[kTile / 8][4], const Rows<kD>& rows,
                              const __nv_bfloat16* keys) {
  const int lane = threadIdx.x % kWarp;
  const __nv_bfloat16* at = keys + (lane / 16 * 8 + lane % 8) * (kD + kPad) + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kTile / 8; n += 2) {
#pragma unroll
    for (int chunk = 0; chunk < kD / 16; ++chunk) {
      uint32_t b[4];
      load_matrices(b, at + n * 8 * (kD + kPad) + chunk * 16);
      multiply(s[n], rows.q[chunk], b[0], b[1]);
      multiply(s[n + 1], rows.q[chunk], b[2], b[3]);
    }
  }
}

// Products become scores, of keys that the row does not see -inf, if there are any; `most` is
// raised to the largest of this lane's columns. `first`: the index of the first key.
template <int kD>
__device__ void mask_scores(float (&s)[kTile / 8][4], float (&most)[2], const Rows<kD>& rows,
                            const AttentionView& view, int32_t first, int32_t index_end,
                            bool all_seen) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int side = i / 2;
      const int32_t index = first + n * 8 + lane % 4 * 2 + i % 2;
      const bool seen = all_seen || (rows.row[side] >= 0 && index < index_end &&
                                     view.sees(rows.position[side], index));
      s[n][i] = seen ? view.score(s[n][i]) * kLog2E : -INFINITY;
      most[side] = fmaxf(most[side], s[n][i]);
    }
  }
}

// Scores become probabilities relative to the largest score so far; y and weight follow it.
template <int kD>
__device__ void normalise(float (&s)[kTile / 8][4], Rows<kD>& rows, const AttentionView& view,
                          int32_t first, int32_t index_end, bool all_seen) {
  float most[2] = {rows.most[0], rows.most[1]};
  mask_scores(s, most, rows, view, first, index_end, all_seen);
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const float base = raise_most(rows, side, quad_max(most[side]));
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 2 * side; i < 2 * side + 2; ++i) {
        s[n][i] = exp2f(s[n][i] - base);
        rows.weight[side] += s[n][i];
      }
    }
  }
}

// y += p · V: the accumulators of two neighbouring score tiles are an A fragment.
template <int kD>
__device__ void multiply_values(const float (&p)[kTile / 8][4], Rows<kD>& rows,
                                const __nv_bfloat16* values) {
  const int lane = threadIdx.x % kWarp;
  const __nv_bfloat16* at = values + lane % 16 * (kD + kPad) + lane / 16 * 8;
#pragma unroll
  for (int chunk = 0; chunk < kTile / 16; ++chunk) {
    const float(&low)[4] = p[2 * chunk];
    const float(&high)[4] = p[2 * chunk + 1];
    const uint32_t a[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]),
                           pack(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kD / 8; n += 2) {
      uint32_t b[4];
      load_transposed(b, at + chunk * 16 * (kD + kPad) + n * 8);
      multiply(rows.y[n], a, b[0], b[1]);
      multiply(rows.y[n + 1], a, b[2], b[3]);
    }
  }
}

template <int kD>
__device__ void write(const Rows<kD>& rows, const AttentionView& view, const Work& work) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const float weight = quad_sum(rows.weight[side]);
    if (rows.row[side] < 0) continue;
    const int32_t head = work.head_of(rows.row[side]);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = n * 8 + lane % 4 * 2 + i;
        if (channel >= view.head_dim) continue;
        view.store(work.token_of(rows.row[side]), head, channel, rows.y[n][2 * side + i] / weight);
      }
    }
  }
}

template <int kD>
__global__ void __launch_bounds__(kWarps* kWarp) flash_kernel(AttentionView view) {
  auto* keys = static_cast<__nv_bfloat16*>(dynamic_shared_memory());
  auto* values = keys + kTile * (kD + kPad);
  constexpr int kThreads = kWarps * kWarp;
  constexpr int kRows = kWarps * kWarpRows;

  begin();
  Work work;
  work.sequence = static_cast<int32_t>(blockIdx.z);
  work.kv_head = static_cast<int32_t>(blockIdx.y);
  work.first_token = view.query_begin[work.sequence];
  work.queries = view.query_begin[work.sequence + 1] - work.first_token;
  work.context = view.context[work.sequence];
  if (work.queries <= 1) return;  // the other kernel's
  work.first_head = view.heads_begin(work.kv_head);
  work.num_group = view.heads_end(work.kv_head) - work.first_head;
  work.num_rows = work.queries * work.num_group;
  work.row_begin = static_cast<int32_t>(gridDim.x - 1 - blockIdx.x) * kRows;  // the longest first
  if (work.row_begin >= work.num_rows) return;
  const int32_t last = min(work.row_begin + kRows, work.num_rows) - 1;
  work.index_begin = 0;
  work.index_end = view.prefix + work.position_of(last) + 1;

  Rows<kD> rows(view, work, work.row_begin + static_cast<int32_t>(threadIdx.x / kWarp) * kWarpRows);
  const int32_t least = work.position_of(work.row_begin);
  const bool windowed = view.spec.window > 0;
  work.first_seen = windowed ? max(0, view.prefix + least - view.spec.window + 1) : 0;
  // Whether every row sees all keys of the tile that begins there.
  const auto all_see = [&](int32_t first) {
    return first + kTile <= view.prefix + least + 1 && (!windowed || first + kTile <= view.prefix ||
                                                        first >= work.index_end - view.spec.window);
  };
  const auto next = [&](int32_t first) { return next_tile(view, work, first); };
  const auto fetch_keys = [&](const Places& places, int32_t first) {
    if (first < work.index_end) {
      fetch<kD, kThreads>(keys, view, places, view.keys, view.prefix_keys, first);
    }
    commit_copies();
  };
  const auto fetch_values = [&](const Places& places, int32_t first) {
    if (first < work.index_end) {
      fetch<kD, kThreads>(values, view, places, view.values, view.prefix_values, first);
    }
    commit_copies();
  };
  int32_t at = next(work.index_begin);
  Places places(view, work, at);
  fetch_keys(places, at);
  fetch_values(places, at);
  while (at < work.index_end) {
    const int32_t following = next(at + kTile);
    places = Places(view, work, following);
    float s[kTile / 8][4] = {};
    wait_for_older_copies();
    __syncthreads();
    multiply_keys(s, rows, keys);
    __syncthreads();
    fetch_keys(places, following);
    normalise(s, rows, view, at, work.index_end, all_see(at));
    wait_for_older_copies();
    __syncthreads();
    multiply_values(s, rows, values);
    __syncthreads();
    fetch_values(places, following);
    at = following;
  }
  write(rows, view, work);
}

template <int kD>
void launch_flash(cudaStream_t stream, const AttentionView& view, const BatchView& batch) {
  constexpr int kRows = kWarps * kWarpRows;
  const int32_t group = std::min(view.heads.group, view.num_heads);
  const int64_t tiles = (int64_t{batch.max_queries} * group + kRows - 1) / kRows;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(view.num_kv_heads),
                  static_cast<unsigned>(batch.num_sequences));
  constexpr size_t kBytes = 2 * kTile * (kD + kPad) * sizeof(__nv_bfloat16);
  launch(flash_kernel<kD>, grid, kWarps * kWarp, kBytes, stream, view);
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

bool flash_attention(cudaStream_t stream, const AttentionView& view, const KvLayer& kv,
                     const BatchView& batch) {
  if (kv.dtype != DType::kBF16 || kv.head_dim % 8 != 0 || !aligned(kv.k) || !aligned(kv.v) ||
      !aligned(kv.prefix_k) || !aligned(kv.prefix_v)) {
    return false;
  }
  if (kv.head_dim > 256) return false;
  if (batch.max_queries > 1) {
    if (kv.head_dim <= 32) {
      launch_flash<32>(stream, view, batch);
    } else if (kv.head_dim <= 64) {
      launch_flash<64>(stream, view, batch);
    } else if (kv.head_dim <= 128) {
      launch_flash<128>(stream, view, batch);
    } else {
      launch_flash<256>(stream, view, batch);
    }
    if (batch.num_sequences == 1) return true;  // none decodes
  }
  flash_decode(stream, view, batch.num_sequences);
  return true;
}

}  // namespace trireme::cuda
