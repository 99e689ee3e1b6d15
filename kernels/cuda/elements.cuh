// SPDX-License-Identifier: Apache-2.0
// Elements of tensors in device code: conversions, activations, reductions over a cta.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <typename E>
__device__ inline E from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half from_float<__half>(float value) {
  constexpr float kLargest = 65504.0f;
  // A NaN stays one: fminf and fmaxf would drop it.
  if (value > kLargest) value = kLargest;
  if (value < -kLargest) value = -kLargest;
  return __float2half_rn(value);
}

// ---- activations ----

struct Silu {
  __device__ float operator()(float x) const { return x / (1.0f + expf(-x)); }
};

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which does not cancel where tanh(u) is near -1.
struct GeluTanh {
  __device__ float operator()(float x) const {
    constexpr float kTwiceRootOfTwoOverPi = 1.5957691216057308f;
    return x / (1.0f + expf(-kTwiceRootOfTwoOverPi * (x + 0.044715f * x * x * x)));
  }
};

// ---- reductions ----

constexpr int kWarp = 32;

__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  }
  return value;
}

// The sum over a cta of kThreads, in every thread; the order of the additions is fixed.
template <int kThreads>
__device__ float cta_sum(float value) {
  __shared__ float parts[kThreads / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) total += parts[i];
  __syncthreads();  // parts may be written again
  return total;
}

}  // namespace trireme::cuda
