// SPDX-License-Identifier: Apache-2.0
// y[t, n] = Σ_k x[t, k] · w[n, k] + bias[n] for a few rows t: the decode step of few sequences.
//
// All the time goes into reading w once, so every load is 16 bytes and each warp has kUnroll of
// them under way. One warp makes one n for all t; its lanes take k in turns, so the order of the
// additions depends on K alone: a row's bits are the same for every T.
#include <cstdint>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnroll = 4;

// Elements of E in 16 bytes.
template <typename E>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(E);
  E values[kCount];
};

// Weights are read once in a step and would push x out of the cache.
template <typename E>
__device__ Pack<E> load_once(const E* at) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(at));
  Pack<E> pack;
  __builtin_memcpy(&pack, &bits, sizeof(pack));
  return pack;
}

template <typename E>
__device__ Pack<E> load(const E* at) {
  const uint4 bits = *reinterpret_cast<const uint4*>(at);
  Pack<E> pack;
  __builtin_memcpy(&pack, &bits, sizeof(pack));
  return pack;
}

// y [T, N] fp32; x [T, K], w [N, K] of E; K a multiple of Pack<E>::kCount.
template <typename E, int T>
__global__ void __launch_bounds__(kThreads)
    matvec_kernel(float* y, int64_t y_stride, const E* x, int64_t x_stride, const E* w,
                  int64_t w_stride, const float* bias, int64_t n, int64_t k) {
  constexpr int kCount = Pack<E>::kCount;
  let_next_begin();
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= n) return;
  const int lane = threadIdx.x % kWarp;
  const E* weights = w + row * w_stride;
  float sums[T] = {};
  const auto accumulate = [&](const Pack<E>& pack, int64_t at) {
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const Pack<E> input = load(x + t * x_stride + at);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        sums[t] = fmaf(to_float(pack.values[i]), to_float(input.values[i]), sums[t]);
      }
    }
  };
  constexpr int64_t kStep = int64_t{kWarp} * kCount;
  int64_t at = int64_t{lane} * kCount;
  Pack<E> packs[kUnroll];
  const auto fetch = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) packs[u] = load_once(weights + at + u * kStep);
  };
  const auto whole = [&] { return at + (kUnroll - 1) * kStep < k; };
  // Weights are nobody's result: the first are on their way while the kernel before this one ends.
  if (whole()) fetch();
  after_previous();
  while (whole()) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) accumulate(packs[u], at + u * kStep);
    at += kUnroll * kStep;
    if (whole()) fetch();
  }
  for (; at < k; at += kStep) accumulate(load_once(weights + at), at);
#pragma unroll
  for (int t = 0; t < T; ++t) {
    const float sum = warp_sum(sums[t]);
    if (lane == t) y[t * y_stride + row] = sum + (bias == nullptr ? 0.0f : bias[row]);
  }
}

bool aligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}

template <typename E, int T = 1>
void launch_rows(cudaStream_t stream, const Tensor& y, const Tensor& x, const E* w,
                 int64_t w_stride, const float* bias, int64_t n) {
  if constexpr (T <= kMatvecRows) {
    if (x.rows != T) return launch_rows<E, T + 1>(stream, y, x, w, w_stride, bias, n);
    const auto grid = static_cast<unsigned>((n + kWarps - 1) / kWarps);
    launch(matvec_kernel<E, T>, dim3(grid), kThreads, 0, stream, static_cast<float*>(y.data),
           y.stride, static_cast<const E*>(x.data), x.stride, w, w_stride, bias, n, x.cols);
  }
}

}  // namespace

bool matvec(cudaStream_t stream, const Tensor& y, const Tensor& x, const Weight& w,
            int64_t w_stride, const float* bias) {
  const int64_t size = element_size(w.dtype);
  if (x.dtype != w.dtype || x.rows > kMatvecRows || w.k * size % 16 != 0 ||
      !aligned(x.data, x.stride * size) || !aligned(w.storage.data(), w_stride * size)) {
    return false;
  }
  switch (w.dtype) {
    case DType::kF32:
      launch_rows(stream, y, x, static_cast<const float*>(w.storage.data()), w_stride, bias, w.n);
      return true;
    case DType::kBF16:
      launch_rows(stream, y, x, static_cast<const __nv_bfloat16*>(w.storage.data()), w_stride, bias,
                  w.n);
      return true;
    case DType::kF16:
      launch_rows(stream, y, x, static_cast<const __half*>(w.storage.data()), w_stride, bias, w.n);
      return true;
    default: break;
  }
  return false;
}

}  // namespace trireme::cuda
