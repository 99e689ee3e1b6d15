// SPDX-License-Identifier: Apache-2.0
// Attention on tensor cores over a paged cache of bf16 (FlashAttention-2, Dao 2023; the split of a
// long context as in Flash-Decoding, Dao et al. 2023).
//
// A warp has 16 rows: their queries as A fragments, their running result as fp32 accumulators. A
// cta of kWarps warps walks over the keys in tiles of 64: a tile of K and one of V in shared
// memory, the next K on its way while V is used, and the other way round. Each byte of K and V is
// read once for all rows of the cta. Scores and sums are fp32, probabilities bf16.
//   chunks: a sequence with several queries; kWarps = 4; grid (tiles of rows, K, S)
//   decode: one query; kWarps = 1, since G heads of a KV head are seldom more than 16;
//           grid (tiles of rows · splits, K, S); results of splits are joined by join_kernel
// A row's bits depend on whether its sequence decodes, not on other sequences.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace trireme::cuda {
namespace {

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
  float weight[2] = {0, 0};                // Σ exp(score - most), of this lane's columns
  int32_t row[2];                          // -1: no such row
  int32_t position[2];

  __device__ Rows(const AttentionView& view, const Work& work) {
    const int lane = threadIdx.x % kWarp;
    const float* from[2];
    for (int side = 0; side < 2; ++side) {
      const int32_t at = work.row_begin + static_cast<int32_t>(threadIdx.x / kWarp) * kWarpRows +
                         lane / 4 + side * 8;
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

// Queues the copy of a tile of K or V. Keys that no row sees become zeros: what stands there may be
// no number, and no weight would make it vanish.
template <int kD, int kThreads>
__device__ void fetch(__nv_bfloat16* tile, const AttentionView& view, const Work& work,
                      const void* cache, const void* before, int32_t first) {
  constexpr int kPieces = kD / 8;
  for (int i = threadIdx.x; i < kTile * kPieces; i += kThreads) {
    const int32_t index = first + i / kPieces;
    const int channel = i % kPieces * 8;
    const bool present = index < work.index_end && channel < view.head_dim &&
                         (index < view.prefix || index >= work.first_seen);
    const auto* from =
        present
            ? view.row<__nv_bfloat16>(cache, before, work.sequence, work.kv_head, index) + channel
            : static_cast<const __nv_bfloat16*>(cache);
    copy_async(tile + i / kPieces * (kD + kPad) + channel, from, present);
  }
}

// Scores of 16 rows x 64 keys: s[n] are keys 8n to 8n + 7.
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

// Scores become probabilities relative to the largest score so far; y and weight follow it.
template <int kD>
__device__ void normalise(float (&s)[kTile / 8][4], Rows<kD>& rows, const AttentionView& view,
                          int32_t first, int32_t index_end) {
  const int lane = threadIdx.x % kWarp;
  float most[2] = {rows.most[0], rows.most[1]};
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
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
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    most[side] = fmaxf(most[side], __shfl_xor_sync(0xFFFFFFFFu, most[side], 1));
    most[side] = fmaxf(most[side], __shfl_xor_sync(0xFFFFFFFFu, most[side], 2));
    const float base = most[side] == -INFINITY ? 0 : most[side];  // nothing seen yet
    const float factor = exp2f((rows.most[side] - base) * kLog2E);
    rows.most[side] = most[side];
    rows.weight[side] *= factor;
#pragma unroll
    for (auto& part : rows.y) {
      part[2 * side] *= factor;
      part[2 * side + 1] *= factor;
    }
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 2 * side; i < 2 * side + 2; ++i) {
        s[n][i] = exp2f((s[n][i] - base) * kLog2E);
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
__device__ void write(const Rows<kD>& rows, const AttentionView& view, const Work& work,
                      bool split_up, int32_t split) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    float weight = rows.weight[side];
    weight += __shfl_xor_sync(0xFFFFFFFFu, weight, 1);
    weight += __shfl_xor_sync(0xFFFFFFFFu, weight, 2);
    if (rows.row[side] < 0) continue;
    const int32_t head = work.head_of(rows.row[side]);
    float* part = split_up ? view.part(work.sequence, head, split) : nullptr;
    const float factor = split_up || weight == 0 ? 1.0f : 1.0f / weight;
    for (int n = 0; n < kD / 8; ++n) {
      for (int i = 0; i < 2; ++i) {
        const int channel = n * 8 + lane % 4 * 2 + i;
        if (channel >= view.head_dim) continue;
        const float value = rows.y[n][2 * side + i] * factor;
        if (split_up) {
          part[channel] = value;
        } else {
          view.store(work.token_of(rows.row[side]), head, channel, value);
        }
      }
    }
    if (split_up && lane % 4 == 0) {
      part[view.head_dim] = rows.most[side];
      part[view.head_dim + 1] = weight;
    }
  }
}

// The first tile from `first` on that some row of the cta sees a key of.
__device__ int32_t next_tile(const AttentionView& view, const Work& work, int32_t first) {
  if (first < view.prefix || work.first_seen <= first) return first;
  return first + (work.first_seen - first) / kTile * kTile;
}

template <int kD, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp) flash_kernel(AttentionView view) {
  auto* keys = static_cast<__nv_bfloat16*>(dynamic_shared_memory());
  auto* values = keys + kTile * (kD + kPad);
  constexpr int kThreads = kWarps * kWarp;
  constexpr int kRows = kWarps * kWarpRows;

  Work work;
  work.sequence = static_cast<int32_t>(blockIdx.z);
  work.kv_head = static_cast<int32_t>(blockIdx.y);
  work.first_token = view.query_begin[work.sequence];
  work.queries = view.query_begin[work.sequence + 1] - work.first_token;
  work.context = view.context[work.sequence];
  if (kWarps == 1 ? work.queries != 1 : work.queries <= 1) return;  // the other kernel's
  work.first_head = view.heads_begin(work.kv_head);
  work.num_group = view.heads_end(work.kv_head) - work.first_head;
  work.num_rows = work.queries * work.num_group;
  const bool split_up = kWarps == 1 && view.num_splits > 1;
  const auto cta = static_cast<int32_t>(blockIdx.x);
  const int32_t split = split_up ? cta % view.num_splits : 0;
  const int32_t tile = split_up ? cta / view.num_splits : cta;
  work.row_begin = tile * kRows;
  if (work.row_begin >= work.num_rows) return;
  const int32_t last = min(work.row_begin + kRows, work.num_rows) - 1;
  work.index_begin = split_up ? split * kSplitPositions : 0;
  work.index_end = view.prefix + work.position_of(last) + 1;
  if (split_up) work.index_end = min(work.index_end, work.index_begin + kSplitPositions);

  Rows<kD> rows(view, work);
  const int32_t least = work.position_of(work.row_begin);
  const bool windowed = view.spec.window > 0;
  work.first_seen = windowed ? max(0, view.prefix + least - view.spec.window + 1) : 0;
  const auto next = [&](int32_t first) { return next_tile(view, work, first); };
  const auto fetch_keys = [&](int32_t first) {
    if (first < work.index_end) {
      fetch<kD, kThreads>(keys, view, work, view.keys, view.prefix_keys, first);
    }
    commit_copies();
  };
  const auto fetch_values = [&](int32_t first) {
    if (first < work.index_end) {
      fetch<kD, kThreads>(values, view, work, view.values, view.prefix_values, first);
    }
    commit_copies();
  };
  int32_t at = next(work.index_begin);
  fetch_keys(at);
  fetch_values(at);
  while (at < work.index_end) {
    const int32_t following = next(at + kTile);
    float s[kTile / 8][4] = {};
    wait_for_older_copies();
    __syncthreads();
    multiply_keys(s, rows, keys);
    __syncthreads();
    fetch_keys(following);
    normalise(s, rows, view, at, work.index_end);
    wait_for_older_copies();
    __syncthreads();
    multiply_values(s, rows, values);
    __syncthreads();
    fetch_values(following);
    at = following;
  }
  write(rows, view, work, split_up, split);
}

// y = Σ over splits of the parts, each brought to the largest score of all. Grid (S, Q).
__global__ void join_kernel(AttentionView view) {
  const auto sequence = static_cast<int32_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t token = view.query_begin[sequence];
  if (view.query_begin[sequence + 1] - token != 1) return;
  const int32_t indices = view.prefix + view.context[sequence];
  const int32_t splits = (indices + kSplitPositions - 1) / kSplitPositions;
  float most = -INFINITY;
  for (int32_t i = 0; i < splits; ++i) {
    most = fmaxf(most, view.part(sequence, head, i)[view.head_dim]);
  }
  for (int32_t channel = threadIdx.x; channel < view.head_dim; channel += blockDim.x) {
    float sum = 0;
    float weight = 0;
    for (int32_t i = 0; i < splits; ++i) {
      const float* part = view.part(sequence, head, i);
      const float factor = exp2f((part[view.head_dim] - most) * kLog2E);
      sum += part[channel] * factor;
      weight += part[view.head_dim + 1] * factor;
    }
    view.store(token, head, channel, sum / weight);
  }
}

template <int kD, int kWarps>
void launch_flash(cudaStream_t stream, const AttentionView& view, int32_t queries,
                  const BatchView& batch) {
  constexpr int kRows = kWarps * kWarpRows;
  const int32_t group = std::min(view.heads.group, view.num_heads);
  const int64_t tiles = (int64_t{queries} * group + kRows - 1) / kRows;
  const dim3 grid(static_cast<unsigned>(kWarps == 1 ? tiles * view.num_splits : tiles),
                  static_cast<unsigned>(view.num_kv_heads),
                  static_cast<unsigned>(batch.num_sequences));
  constexpr size_t kBytes = 2 * kTile * (kD + kPad) * sizeof(__nv_bfloat16);
  launch(flash_kernel<kD, kWarps>, grid, kWarps * kWarp, kBytes, stream, view);
}

template <int kD>
void launch_all(cudaStream_t stream, const AttentionView& view, const BatchView& batch) {
  if (batch.max_queries > 1) launch_flash<kD, 4>(stream, view, batch.max_queries, batch);
  if (batch.max_queries > 1 && batch.num_sequences == 1) return;  // none decodes
  launch_flash<kD, 1>(stream, view, 1, batch);
  if (view.num_splits == 1) return;
  const dim3 grid(static_cast<unsigned>(batch.num_sequences),
                  static_cast<unsigned>(view.num_heads));
  launch(join_kernel, grid, 4 * kWarp, 0, stream, view);
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

bool flash_attention(cudaStream_t stream, const AttentionView& view, const KvLayer& kv,
                     const BatchView& batch) {
  if (kv.dtype != DType::kBF16 || kv.head_dim % 8 != 0 || !aligned(kv.k) || !aligned(kv.v) ||
      !aligned(kv.prefix_k) || !aligned(kv.prefix_v)) {
    return false;
  }
  if (kv.head_dim <= 32) {
    launch_all<32>(stream, view, batch);
  } else if (kv.head_dim <= 64) {
    launch_all<64>(stream, view, batch);
  } else if (kv.head_dim <= 128) {
    launch_all<128>(stream, view, batch);
  } else if (kv.head_dim <= 256) {
    launch_all<256>(stream, view, batch);
  } else {
    return false;
  }
  return true;
}

}  // namespace trireme::cuda
