// SPDX-License-Identifier: Apache-2.0
// Matrix products by cuBLASLt, opened at run time: a program built with CUDA starts on machines
// that have no CUDA libraries. Owned by one CudaBackend and used by its thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "kernels/tensor.h"

namespace trireme::cuda {

// y [T, N] fp32 = x [T, K] · w [N, K]ᵀ + bias [N], all row-major, x and w of one type; row strides
// in elements. Data and strides of x and w are multiples of 16 bytes, of y too.
struct Product {
  Tensor y, x;
  const void* w = nullptr;
  int64_t n = 0;
  int64_t w_stride = 0;
  const float* bias = nullptr;  // or null
};

class Cublas {
 public:
  // One algorithm for each (N, K, type), whatever T, without a split of K: rows are then
  // bit-identical whatever the batch. Else the best for each bucket of T.
  explicit Cublas(bool deterministic);  // throws kFailedPrecondition where the library is missing
  ~Cublas();
  Cublas(const Cublas&) = delete;

  // Queues the product. The first call for a shape chooses its algorithm. Accumulates fp32; fp32
  // inputs are not rounded to TF32. Throws kInternal.
  void multiply(cudaStream_t stream, const Product& product);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme::cuda
