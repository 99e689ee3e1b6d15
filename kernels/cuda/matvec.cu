// SPDX-License-Identifier: Apache-2.0
// y[t, n] = Σ_k x[t, k] · w[n, k] + bias[n] for a few rows t: the decode step of few sequences; and
// activation(y[t, n]) · y[t, N + n], where nobody needs the y themselves.
//
// All the time goes into reading w once, so every load is 16 bytes and each warp has kUnroll of a
// row of w under way. One warp makes one n for all t; its lanes take k in turns, so the order of
// the additions depends on K alone: a row's bits are the same for every T.
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

// What becomes of sums: y [T, N] fp32 = sum + bias.
struct Plain {
  static constexpr int kRows = 1;  // of w, for one column of y
  float* y;
  int64_t y_stride;
  const float* bias;

  __device__ void finish(const float (&sums)[kRows], int t, int64_t row, int64_t) const {
    y[t * y_stride + row] = sums[0] + (bias == nullptr ? 0.0f : bias[row]);
  }
};

// y [T, N] of Y = activation(gate) · up, where w has the rows of all gates first.
template <typename Y, typename Activation>
struct Gated {
  static constexpr int kRows = 2;
  Y* y;
  int64_t y_stride;
  const float* bias;

  __device__ void finish(const float (&sums)[kRows], int t, int64_t row, int64_t n) const {
    const float gate = sums[0] + (bias == nullptr ? 0.0f : bias[row]);
    const float up = sums[1] + (bias == nullptr ? 0.0f : bias[n + row]);
    y[t * y_stride + row] = from_float<Y>(Activation{}(gate)*up);
  }
};

// x [T, K], w [kRows · N, K] of E; K a multiple of Pack<E>::kCount.
template <typename E, int T, typename Result>
__global__ void __launch_bounds__(kThreads)
    matvec_kernel(Result result, const E* x, int64_t x_stride, const E* w, int64_t w_stride,
                  int64_t n, int64_t k) {
  constexpr int kCount = Pack<E>::kCount;
  constexpr int kRows = Result::kRows;
  let_next_begin();
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= n) return;
  const int lane = threadIdx.x % kWarp;
  const E* weights[kRows];
  for (int r = 0; r < kRows; ++r) weights[r] = w + (row + r * n) * w_stride;
  float sums[T][kRows] = {};
  const auto accumulate = [&](const Pack<E>(&packs)[kRows], int64_t at) {
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const Pack<E> input = load(x + t * x_stride + at);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float value = to_float(input.values[i]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          sums[t][r] = fmaf(to_float(packs[r].values[i]), value, sums[t][r]);
        }
      }
    }
  };
  constexpr int64_t kStep = int64_t{kWarp} * kCount;
  int64_t at = int64_t{lane} * kCount;
  Pack<E> packs[kUnroll][kRows];
  const auto fetch = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) packs[u][r] = load_once(weights[r] + at + u * kStep);
    }
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
  for (; at < k; at += kStep) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) packs[0][r] = load_once(weights[r] + at);
    accumulate(packs[0], at);
  }
#pragma unroll
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < kRows; ++r) sums[t][r] = warp_sum(sums[t][r]);
    if (lane == t) result.finish(sums[t], t, row, n);
  }
}

bool aligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}

template <typename E, int T = 1, typename Result>
void launch_rows(cudaStream_t stream, const Result& result, const Tensor& x, const E* w,
                 int64_t w_stride, int64_t n) {
  if constexpr (T <= kMatvecRows) {
    if (x.rows != T) return launch_rows<E, T + 1>(stream, result, x, w, w_stride, n);
    const auto grid = static_cast<unsigned>((n + kWarps - 1) / kWarps);
    launch(matvec_kernel<E, T, Result>, dim3(grid), kThreads, 0, stream, result,
           static_cast<const E*>(x.data), x.stride, w, w_stride, n, x.cols);
  }
}

template <typename Result>
bool product(cudaStream_t stream, const Result& result, const Tensor& x, const Weight& w,
             int64_t w_stride) {
  const int64_t size = element_size(w.dtype);
  if (x.dtype != w.dtype || x.rows > kMatvecRows || w.k * size % 16 != 0 ||
      !aligned(x.data, x.stride * size) || !aligned(w.storage.data(), w_stride * size)) {
    return false;
  }
  const int64_t n = w.n / Result::kRows;
  const void* data = w.storage.data();
  switch (w.dtype) {
    case DType::kF32:
      launch_rows(stream, result, x, static_cast<const float*>(data), w_stride, n);
      return true;
    case DType::kBF16:
      launch_rows(stream, result, x, static_cast<const __nv_bfloat16*>(data), w_stride, n);
      return true;
    case DType::kF16:
      launch_rows(stream, result, x, static_cast<const __half*>(data), w_stride, n);
      return true;
    default: break;
  }
  return false;
}

template <typename Y>
bool gated_product(cudaStream_t stream, const Tensor& y, const Tensor& x, const Weight& w,
                   int64_t w_stride, const float* bias, Backend::Activation activation) {
  auto* const to = static_cast<Y*>(y.data);
  if (activation == Backend::Activation::kSilu) {
    return product(stream, Gated<Y, Silu>{to, y.stride, bias}, x, w, w_stride);
  }
  return product(stream, Gated<Y, GeluTanh>{to, y.stride, bias}, x, w, w_stride);
}

}  // namespace

bool matvec(cudaStream_t stream, const Tensor& y, const Tensor& x, const Weight& w,
            int64_t w_stride, const float* bias) {
  return product(stream, Plain{static_cast<float*>(y.data), y.stride, bias}, x, w, w_stride);
}

bool gated_matvec(cudaStream_t stream, const Tensor& y, const Tensor& x, const Weight& w,
                  int64_t w_stride, const float* bias, Backend::Activation activation) {
  return y.dtype == DType::kBF16
             ? gated_product<__nv_bfloat16>(stream, y, x, w, w_stride, bias, activation)
             : gated_product<float>(stream, y, x, w, w_stride, bias, activation);
}

}  // namespace trireme::cuda
