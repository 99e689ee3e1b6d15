// SPDX-License-Identifier: Apache-2.0
// y[t, n] = Σ_groups scale[n, group] · Σ_k q[n, k] · x[t, k] + bias[n] for up to 64 rows t, with q
// of int8 or int4 and x of bf16.
//
// The integers of 16 rows of w are the A operand of m16n8k16 (quantised.cuh), exact in bf16; 8 rows
// of x are B; sums of a chunk are fp32 and take the scale into the result in fp32. Reads
// N · K · (1 or 1/2) bytes of w and N · K / 128 · 2 of scales once.
//
// A cta of 8 warps makes R · 16 rows of w for each kRowWarps of them; the other warps share K with
// those, a group each in turn, and add up in shared memory. Where that gives too few ctas for the
// device, ctas share K too: their sums go through `partial`, and the last to arrive adds them in
// order. The order of additions is a function of N, K and the geometry: not of time.
//
// Up to 8 rows of x are read through the first cache, which holds them, and no warp waits for
// another. More go through shared memory, a step of all K-warps' groups while the next is copied; a
// cta has 128 rows of w then, since it reads all of x.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/quantised.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPiece = 8;  // elements of x in 16 bytes

// kTokens: tiles of 8 rows of x. kR: tiles of 16 rows of w in a warp. kAhead: groups under way.
template <int kBits_, int kTokens_, int kR_, int kRowWarps_, int kAhead_, int kCtas_, bool kStaged_>
struct Geometry {
  static constexpr int kBits = kBits_;
  static constexpr int kTokens = kTokens_;
  static constexpr int kR = kR_;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kKWarps = kWarps / kRowWarps;
  static constexpr int kAhead = kAhead_;
  static constexpr int kCtas = kCtas_;  // on a multiprocessor
  static constexpr bool kStaged = kStaged_;
  static constexpr int64_t kTiles = kRowWarps * kR;  // of a cta
  // Of a row of x in shared memory: 32 elements more, so that two rows are on different banks.
  static constexpr int kStepChannels = kKWarps * static_cast<int>(kQuantGroup);
  static constexpr int kXStride = kStepChannels + 32;
  static constexpr int kStageElements = 8 * kTokens * kXStride;
  static constexpr int kSums = kR * kTokens * kWarp;  // float4 of a warp
  static constexpr size_t kSharedBytes =
      std::max(kStaged ? 2 * kStageElements * sizeof(__nv_bfloat16) : size_t{0},
               (kKWarps - 1) * kRowWarps * kSums * sizeof(float4));
};

struct Input {
  const __nv_bfloat16* x;
  int64_t stride;
  int rows;
  int32_t lead, cols;  // channels [lead, lead + cols) of the groups
};

struct Output {
  float* y;
  int64_t stride;
  const float* bias;
  float4* partial;
  int* counters;  // [gridDim.x], zero before and after
};

// A lane's share of groups of kR tiles of w: where they are, and those on their way.
template <class G>
struct Weights {
  const uint4* values[G::kR];  // of group 0
  const uint32_t* scales[G::kR];
  Chunk<G::kBits> chunks[G::kAhead][kChunksOfGroup][G::kR] = {};
  uint32_t scale[G::kAhead][G::kR] = {};

  __device__ Weights(const QuantisedView& w, int32_t first_tile, int lane) {
#pragma unroll
    for (int r = 0; r < G::kR; ++r) {  // rows beyond w are some others, and stored nowhere
      const int32_t tile = min(first_tile + r, w.tiles - 1);
      values[r] = w.chunk<G::kBits>(tile, 0, lane);
      scales[r] = w.scale(tile, 0, lane / 4);
    }
  }
  __device__ void load_chunk(int u, int chunk, int32_t group) {
    constexpr int kParts = G::kBits / 4;
#pragma unroll
    for (int r = 0; r < G::kR; ++r) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        chunks[u][chunk][r].parts[i] = __ldcs(
            values[r] + (int64_t{group} * kChunksOfGroup + chunk) * (kParts * kWarp) + i * kWarp);
      }
    }
  }
  __device__ void load_scale(int u, int32_t group) {
#pragma unroll
    for (int r = 0; r < G::kR; ++r) scale[u][r] = __ldg(scales[r] + int64_t{group} * 8);
  }
};

// Whether row `row` of x has the eight channels from `channel` of the groups on; else they count as
// zeros.
__device__ inline bool present(const Input& in, int row, int32_t channel) {
  return row < in.rows && channel >= in.lead && channel < in.lead + in.cols;
}

__device__ inline const __nv_bfloat16* place(const Input& in, int row, int32_t channel) {
  return in.x + row * in.stride + (channel - in.lead);
}

// Queues the copy of the x of one step.
template <class G>
__device__ void fetch_inputs(__nv_bfloat16* stage, const Input& in, int32_t channel) {
  constexpr int kPieces = G::kStepChannels / kPiece;
#pragma unroll 2
  for (int i = threadIdx.x; i < 8 * G::kTokens * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int at = i % kPieces * kPiece;
    const bool there = present(in, row, channel + at);
    copy_async(stage + row * G::kXStride + at, there ? place(in, row, channel + at) : in.x, there);
  }
}

// sums += scale · (integers of a chunk · inputs); input(token tile, half) gives four pairs of x.
// The halves of a chunk are sums of their own, so that no MMA waits for the one before it.
template <class G, typename InputOf>
__device__ void multiply_chunk(float4 (&sums)[G::kR][G::kTokens], const uint32_t (&a)[G::kR][4][4],
                               const uint32_t (&scales)[G::kR], const InputOf& input) {
#pragma unroll
  for (int token = 0; token < G::kTokens; ++token) {
    const uint4 x[2] = {input(token, 0), input(token, 1)};
    float c[G::kR][2][4] = {};
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t near = step == 0 ? x[half].x : x[half].z;
        const uint32_t far = step == 0 ? x[half].y : x[half].w;
#pragma unroll
        for (int r = 0; r < G::kR; ++r) multiply(c[r][half], a[r][2 * half + step], near, far);
      }
    }
#pragma unroll
    for (int r = 0; r < G::kR; ++r) {
      float4& sum = sums[r][token];
      sum.x = fmaf(low_bf16(scales[r]), c[r][0][0] + c[r][1][0], sum.x);
      sum.y = fmaf(low_bf16(scales[r]), c[r][0][1] + c[r][1][1], sum.y);
      sum.z = fmaf(high_bf16(scales[r]), c[r][0][2] + c[r][1][2], sum.z);
      sum.w = fmaf(high_bf16(scales[r]), c[r][0][3] + c[r][1][3], sum.w);
    }
  }
}

__device__ inline void add(float4& sum, const float4& other) {
  sum.x += other.x;
  sum.y += other.y;
  sum.z += other.z;
  sum.w += other.w;
}

// The sums of all warps of the cta that share rows, in the first of them.
template <class G>
__device__ void add_up(float4 (&sums)[G::kR][G::kTokens], int row_warp, int k_warp, int lane) {
  if constexpr (G::kKWarps == 1) return;
  auto* shared = static_cast<float4*>(dynamic_shared_memory()) + row_warp * G::kSums + lane;
  constexpr int kOfKWarp = G::kRowWarps * G::kSums;
  const auto each = [&](const auto& visit) {
#pragma unroll
    for (int r = 0; r < G::kR; ++r) {
#pragma unroll
      for (int token = 0; token < G::kTokens; ++token) {
        visit(sums[r][token], (r * G::kTokens + token) * kWarp);
      }
    }
  };
  if (k_warp > 0) {
    each([&](const float4& sum, int at) { shared[(k_warp - 1) * kOfKWarp + at] = sum; });
  }
  __syncthreads();
  if (k_warp > 0) return;
  for (int other = 0; other < G::kKWarps - 1; ++other) {
    each([&](float4& sum, int at) { add(sum, shared[other * kOfKWarp + at]); });
  }
}

// Of ctas that share rows: true in the last one to come, which has the sums of all then.
template <class G>
__device__ bool join_ctas(float4 (&sums)[G::kR][G::kTokens], const Output& out, int row_warp,
                          int k_warp, int lane) {
  const int64_t splits = gridDim.y;
  const auto at = [&](int64_t split) {
    return out.partial + ((blockIdx.x * splits + split) * G::kRowWarps + row_warp) * G::kSums +
           lane;
  };
  if (k_warp == 0) {
    float4* mine = at(blockIdx.y);
#pragma unroll
    for (int i = 0; i < G::kR * G::kTokens; ++i) {
      mine[i * kWarp] = sums[i / G::kTokens][i % G::kTokens];
    }
  }
  __threadfence();
  __syncthreads();
  __shared__ bool last;
  if (threadIdx.x == 0) last = atomicAdd(out.counters + blockIdx.x, 1) == splits - 1;
  __syncthreads();
  if (!last) return false;
  __threadfence();
  if (threadIdx.x == 0) out.counters[blockIdx.x] = 0;
  if (k_warp > 0) return true;
#pragma unroll
  for (int i = 0; i < G::kR * G::kTokens; ++i) {
    float4 sum = __ldcg(at(0) + i * kWarp);
    for (int64_t split = 1; split < splits; ++split) add(sum, __ldcg(at(split) + i * kWarp));
    sums[i / G::kTokens][i % G::kTokens] = sum;
  }
  return true;
}

// A lane's sums: rows g and g + 8 of a tile of w, rows 2t and 2t + 1 of a tile of x.
template <class G>
__device__ void store(const float4 (&sums)[G::kR][G::kTokens], const Output& out,
                      const QuantisedView& w, const Input& in, int32_t first_tile, int lane) {
#pragma unroll
  for (int r = 0; r < G::kR; ++r) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int32_t n = (first_tile + r) * static_cast<int32_t>(kQuantRows) + lane / 4 + side * 8;
      if (n >= w.n) continue;
      const float bias = out.bias == nullptr ? 0.0f : out.bias[n];
#pragma unroll
      for (int token = 0; token < G::kTokens; ++token) {
        const float4& sum = sums[r][token];
        const int row = 8 * token + lane % 4 * 2;
        float* to = out.y + row * out.stride + n;
        if (row < in.rows) to[0] = (side == 0 ? sum.x : sum.z) + bias;
        if (row + 1 < in.rows) to[out.stride] = (side == 0 ? sum.y : sum.w) + bias;
      }
    }
  }
}

// One step of a warp: its group's chunks, and those of the group that comes kAhead steps later.
template <class G>
__device__ void run_group(float4 (&sums)[G::kR][G::kTokens], Weights<G>& weights, int u,
                          int32_t next, int32_t end, const auto& input) {
  uint32_t scales[G::kR];
#pragma unroll
  for (int r = 0; r < G::kR; ++r) scales[r] = weights.scale[u][r];
  if (next < end) weights.load_scale(u, next);
#pragma unroll
  for (int chunk = 0; chunk < kChunksOfGroup; ++chunk) {
    uint32_t a[G::kR][4][4];
#pragma unroll
    for (int r = 0; r < G::kR; ++r) unpack(a[r], weights.chunks[u][chunk][r]);
    if (next < end) weights.load_chunk(u, chunk, next);
    multiply_chunk<G>(sums, a, scales, [&](int token, int side) {
      return input(token, chunk * kChunk + side * 32);
    });
  }
}

// grid (ceil(tiles / G::kTiles), splits of K).
template <class G>
__global__ void __launch_bounds__(kThreads, G::kCtas)
    quantised_kernel(QuantisedView w, Input in, Output out) {
  const int lane = threadIdx.x % kWarp;
  const int row_warp = static_cast<int>(threadIdx.x) / kWarp % G::kRowWarps;
  const int k_warp = static_cast<int>(threadIdx.x) / kWarp / G::kRowWarps;
  const auto first_tile = static_cast<int32_t>(blockIdx.x * G::kTiles + row_warp * G::kR);
  const auto begin = static_cast<int32_t>(int64_t{w.groups} * blockIdx.y / gridDim.y);
  const auto end = static_cast<int32_t>(int64_t{w.groups} * (blockIdx.y + 1) / gridDim.y);
  let_next_begin();
  // Weights are nobody's result: the first are on their way while the kernel before this one ends.
  Weights<G> weights(w, first_tile, lane);
#pragma unroll
  for (int u = 0; u < G::kAhead; ++u) {
    const int32_t group = begin + u * G::kKWarps + k_warp;
    if (group >= end) break;
    weights.load_scale(u, group);
#pragma unroll
    for (int chunk = 0; chunk < kChunksOfGroup; ++chunk) weights.load_chunk(u, chunk, group);
  }
  after_previous();
  auto* const stages = static_cast<__nv_bfloat16*>(dynamic_shared_memory());
  const auto fetch = [&](int32_t group, int stage) {
    if (group < end) {
      fetch_inputs<G>(stages + stage * G::kStageElements, in,
                      group * static_cast<int32_t>(kQuantGroup));
    }
    commit_copies();
  };
  if constexpr (G::kStaged) fetch(begin, 0);
  int stage = 0;
  const int own = lane % 4 * kPiece;  // first channel of a lane in 32
  float4 sums[G::kR][G::kTokens] = {};
  for (int32_t first = begin; first < end;) {
#pragma unroll
    for (int u = 0; u < G::kAhead; ++u, first += G::kKWarps) {
      if (first >= end) break;
      const int32_t group = first + k_warp;
      const int32_t next = group + G::kAhead * G::kKWarps;
      if constexpr (G::kStaged) {
        fetch(first + G::kKWarps, 1 - stage);
        wait_for_older_copies();
        __syncthreads();
        const __nv_bfloat16* at = stages + stage * G::kStageElements + lane / 4 * G::kXStride +
                                  k_warp * static_cast<int>(kQuantGroup) + own;
        if (group < end) {
          run_group<G>(sums, weights, u, next, end, [&](int token, int channel) {
            return *reinterpret_cast<const uint4*>(at + 8 * token * G::kXStride + channel);
          });
        }
        __syncthreads();  // the stage is filled again
        stage = 1 - stage;
      } else if (group < end) {
        run_group<G>(sums, weights, u, next, end, [&](int token, int channel) {
          const int row = 8 * token + lane / 4;
          const int32_t at = group * static_cast<int32_t>(kQuantGroup) + channel + own;
          return present(in, row, at) ? *reinterpret_cast<const uint4*>(place(in, row, at))
                                      : uint4{0, 0, 0, 0};
        });
      }
    }
  }
  add_up<G>(sums, row_warp, k_warp, lane);
  if (gridDim.y > 1 && !join_ctas<G>(sums, out, row_warp, k_warp, lane)) return;
  if (k_warp == 0) store<G>(sums, out, w, in, first_tile, lane);
}

template <class G>
void multiply_rows(cudaStream_t stream, const QuantisedProduct& p) {
  constexpr QuantisedGeometry kPlan = quantised_geometry(8 * G::kTokens);
  static_assert(kPlan.rows == G::kTiles * kQuantRows && kPlan.tokens == 8 * G::kTokens &&
                kPlan.k_warps == G::kKWarps && kPlan.ctas % G::kCtas == 0 &&
                kPlan.ctas / 2 * int64_t{sizeof(int)} <= kQuantisedCounterBytes);
  const QuantisedView w(p.w);
  const auto ctas = static_cast<unsigned>(round_up(w.n, kPlan.rows) / kPlan.rows);
  const auto splits = static_cast<unsigned>(quantised_splits(w.n, w.k, w.lead, 8 * G::kTokens));
  const Input in = {static_cast<const __nv_bfloat16*>(p.x.data), p.x.stride,
                    static_cast<int>(p.x.rows), p.all_channels ? 0 : w.lead,
                    static_cast<int32_t>(p.x.cols)};
  const Output out = {static_cast<float*>(p.y.data), p.y.stride, p.bias,
                      static_cast<float4*>(p.partial), p.counters};
  launch(quantised_kernel<G>, dim3(ctas, splits), kThreads, G::kSharedBytes, stream, w, in, out);
}

template <int kBits>
void multiply_bits(cudaStream_t stream, const QuantisedProduct& p) {
  constexpr int kAhead = kBits == 4 ? 2 : 1;
  if (p.x.rows <= 8)
    return multiply_rows<Geometry<kBits, 1, 1, 1, 2 * kAhead, 2, false>>(stream, p);
  if (p.x.rows <= 16) return multiply_rows<Geometry<kBits, 2, 1, 8, kAhead, 2, true>>(stream, p);
  if (p.x.rows <= 32) return multiply_rows<Geometry<kBits, 4, 2, 4, kAhead, 1, true>>(stream, p);
  return multiply_rows<Geometry<kBits, 8, 2, 4, 1, 1, true>>(stream, p);
}

}  // namespace

void quantised_matmul(cudaStream_t stream, const QuantisedProduct& product) {
  (product.w.dtype == DType::kI4 ? multiply_bits<4> : multiply_bits<8>)(stream, product);
}

}  // namespace trireme::cuda
