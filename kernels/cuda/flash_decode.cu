// SPDX-License-Identifier: Apache-2.0
// Attention of sequences with one query, on tensor cores over a paged cache of bf16; long contexts
// are split (Flash-Decoding, Dao et al. 2023).
//
// The rows of a cta are the query heads of one KV head, seldom more than 16: all its warps have the
// same ones. In a tile of 64 keys each warp makes the scores of its share of the keys, and after
// the probabilities went through shared memory its share of the channels of p · V: so a tile takes
// a fraction of what one warp would need, and the registers of many ctas fit.
//   grid (tiles of rows · splits, K, S); the splits' results are joined by join_kernel
#include <algorithm>

#include "kernels/cuda/flash.cuh"

namespace trireme::cuda {
namespace {

constexpr int kProbabilityStride = kTile + kPad;

// What a cta has in shared memory.
template <int kD, int kWarps>
struct Shared {
  __nv_bfloat16 keys[kTile * (kD + kPad)];
  __nv_bfloat16 values[kTile * (kD + kPad)];
  __nv_bfloat16 probabilities[kWarpRows * kProbabilityStride];
  float of_warps[kWarps][kWarpRows];
};

// Brings rows.most to the largest score so far of all warps, y and weight after it, and puts the
// probabilities of this warp's keys, which begin at `first`, into shared memory.
template <int kD, int kWarps, int kKeys, int kChannels>
__device__ void normalise(float (&s)[kKeys / 8][4], Rows<kD, kChannels>& rows,
                          Shared<kD, kWarps>& shared, const AttentionView& view, int32_t first,
                          int32_t index_end) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  float most[2] = {-INFINITY, -INFINITY};
  mask_scores<kKeys>(s, most, rows, view, first, index_end);
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    most[side] = quad_max(most[side]);
    if (lane % 4 == 0) shared.of_warps[warp][lane / 4 + side * 8] = most[side];
  }
  __syncthreads();
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int row = lane / 4 + side * 8;
    float largest = rows.most[side];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.of_warps[w][row]);
    const float base = raise_most(rows, side, largest);
    __nv_bfloat16* to = shared.probabilities + row * kProbabilityStride + warp * kKeys;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const float low = exp2f((s[n][2 * side] - base) * kLog2E);
      const float high = exp2f((s[n][2 * side + 1] - base) * kLog2E);
      rows.weight[side] += low + high;
      const uint32_t both = pack(low, high);
      __builtin_memcpy(static_cast<void*>(to + n * 8 + lane % 4 * 2), &both, sizeof(both));
    }
  }
}

// y += p · V of this warp's channels, of which `values` is the first.
template <int kD, int kChannels>
__device__ void multiply_values(const __nv_bfloat16* probabilities, Rows<kD, kChannels>& rows,
                                const __nv_bfloat16* values) {
  const int lane = threadIdx.x % kWarp;
  const __nv_bfloat16* p = probabilities + lane % 16 * kProbabilityStride + lane / 16 * 8;
  const __nv_bfloat16* at = values + lane % 16 * (kD + kPad) + lane / 16 * 8;
#pragma unroll
  for (int chunk = 0; chunk < kTile / 16; ++chunk) {
    uint32_t a[4];
    load_matrices(a, p + chunk * 16);
    add_values(rows, a, at + chunk * 16 * (kD + kPad));
  }
}

// The cta's work; false: it has none.
__device__ bool find_work(const AttentionView& view, int32_t& split, Work& work) {
  work.sequence = static_cast<int32_t>(blockIdx.z);
  work.kv_head = static_cast<int32_t>(blockIdx.y);
  work.first_token = view.query_begin[work.sequence];
  work.queries = view.query_begin[work.sequence + 1] - work.first_token;
  if (work.queries != 1) return false;  // the other kernel's
  work.context = view.context[work.sequence];
  work.first_head = view.heads_begin(work.kv_head);
  work.num_group = view.heads_end(work.kv_head) - work.first_head;
  work.num_rows = work.num_group;
  const auto cta = static_cast<int32_t>(blockIdx.x);
  split = cta % view.num_splits;
  work.row_begin = cta / view.num_splits * kWarpRows;
  if (work.row_begin >= work.num_rows) return false;
  work.index_begin = split * kSplitPositions;
  work.index_end = view.prefix + work.context;
  if (view.num_splits > 1) {
    if (work.index_begin >= work.index_end) return false;  // another row's context is longer
    work.index_end = min(work.index_end, work.index_begin + kSplitPositions);
  }
  const bool windowed = view.spec.window > 0;
  work.first_seen = windowed ? max(0, view.prefix + work.context - 1 - view.spec.window + 1) : 0;
  return true;
}

// Ctas on a multiprocessor, which bounds their registers. On an H200, of the copy's bandwidth at 64
// sequences of 1,024 and 128 channels: unbounded (3 ctas) 0.31, 4 ctas 0.41, 6 ctas, which spill,
// 0.33.
template <int kD>
constexpr int kCtasAtOnce = kD <= 128 ? 4 : 3;

template <int kD, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, kCtasAtOnce<kD>)
    decode_kernel(AttentionView view) {
  constexpr int kThreads = kWarps * kWarp;
  constexpr int kKeys = kTile / kWarps;   // of a warp, in a tile
  constexpr int kChannels = kD / kWarps;  // of a warp
  static_assert(kKeys % 16 == 0 && kChannels % 16 == 0);
  auto& shared = *static_cast<Shared<kD, kWarps>*>(dynamic_shared_memory());
  begin();
  Work work;
  int32_t split = 0;
  if (!find_work(view, split, work)) return;
  const int warp = threadIdx.x / kWarp;
  int32_t at = next_tile(view, work, work.index_begin);
  const auto fetch_keys = [&](const Places& places, int32_t first) {
    if (first < work.index_end) {
      fetch<kD, kThreads>(shared.keys, view, places, view.keys, view.prefix_keys, first);
    }
    commit_copies();
  };
  const auto fetch_values = [&](const Places& places, int32_t first) {
    if (first < work.index_end) {
      fetch<kD, kThreads>(shared.values, view, places, view.values, view.prefix_values, first);
    }
    commit_copies();
  };
  Places places(view, work, at);
  fetch_keys(places, at);
  fetch_values(places, at);
  Rows<kD, kChannels> rows(view, work, work.row_begin);
  while (at < work.index_end) {
    const int32_t following = next_tile(view, work, at + kTile);
    places = Places(view, work, following);
    float s[kKeys / 8][4] = {};
    wait_for_older_copies();
    __syncthreads();
    multiply_keys<kKeys>(s, rows, shared.keys + warp * kKeys * (kD + kPad));
    __syncthreads();
    fetch_keys(places, following);
    normalise<kD, kWarps, kKeys>(s, rows, shared, view, at + warp * kKeys, work.index_end);
    wait_for_older_copies();
    __syncthreads();
    multiply_values(shared.probabilities, rows, shared.values + warp * kChannels);
    __syncthreads();
    fetch_values(places, following);
    at = following;
  }
  float weights[2];
  for (int side = 0; side < 2; ++side) weights[side] = quad_sum(rows.weight[side]);
  const int lane = threadIdx.x % kWarp;
  if (lane % 4 == 0) {
    for (int side = 0; side < 2; ++side) shared.of_warps[warp][lane / 4 + side * 8] = weights[side];
  }
  __syncthreads();
  for (int side = 0; side < 2; ++side) {
    weights[side] = 0;
    for (int w = 0; w < kWarps; ++w) weights[side] += shared.of_warps[w][lane / 4 + side * 8];
  }
  write(rows, weights, warp * kChannels, view, work, view.num_splits > 1, split);
}

// y = Σ over splits of the parts, each brought to the largest score of all. Grid (S, Q).
__global__ void join_kernel(AttentionView view) {
  begin();
  const auto sequence = static_cast<int32_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t token = view.query_begin[sequence];
  if (view.query_begin[sequence + 1] - token != 1) return;
  const int32_t indices = view.prefix + view.context[sequence];
  const auto splits = static_cast<int32_t>(context_splits(indices));
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
void launch_decode(cudaStream_t stream, const AttentionView& view, int32_t sequences) {
  const int32_t group = std::min(view.heads.group, view.num_heads);
  const int32_t tiles = (group + kWarpRows - 1) / kWarpRows;
  const dim3 grid(static_cast<unsigned>(tiles * view.num_splits),
                  static_cast<unsigned>(view.num_kv_heads), static_cast<unsigned>(sequences));
  launch(decode_kernel<kD, kWarps>, grid, kWarps * kWarp, sizeof(Shared<kD, kWarps>), stream, view);
}

}  // namespace

void flash_decode(cudaStream_t stream, const AttentionView& view, int32_t sequences) {
  if (view.head_dim <= 32) {
    launch_decode<32, 2>(stream, view, sequences);
  } else if (view.head_dim <= 64) {
    launch_decode<64, 4>(stream, view, sequences);
  } else if (view.head_dim <= 128) {
    launch_decode<128, 4>(stream, view, sequences);
  } else {
    launch_decode<256, 4>(stream, view, sequences);
  }
  if (view.num_splits == 1) return;
  const dim3 grid(static_cast<unsigned>(sequences), static_cast<unsigned>(view.num_heads));
  launch(join_kernel, grid, 4 * kWarp, 0, stream, view);
}

}  // namespace trireme::cuda
