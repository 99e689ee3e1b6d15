// SPDX-License-Identifier: Apache-2.0
// kernels/cuda/cublas.h by plain loops, in double; refuses what cuBLASLt would.
#include "kernels/cuda/cublas.h"

#include "kernels/base/check.h"
#include "tests/support/cuda_emulation/graphs.h"
#include "tests/support/cuda_emulation/memory.h"

namespace trireme::cuda {
namespace {

double element(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[at];
    case DType::kBF16: return bf16_to_float(static_cast<const uint16_t*>(data)[at]);
    case DType::kF16: return fp16_to_float(static_cast<const uint16_t*>(data)[at]);
    default: break;
  }
  CHECK(false, "a product of integers");
}

bool aligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}

void multiply_now(const Product& product) {
  const emulation::DeviceAccess access;
  const DType dtype = product.x.dtype;
  const int64_t size = element_size(dtype);
  CHECK(aligned(product.x.data, product.x.stride * size) &&
            aligned(product.w, product.w_stride * size) &&
            aligned(product.y.data, product.y.stride * 4) && aligned(product.bias, 0),
        "operands that cuBLASLt has no fast algorithm for");
  for (int64_t t = 0; t < product.x.rows; ++t) {
    for (int64_t n = 0; n < product.n; ++n) {
      double sum = product.bias == nullptr ? 0 : product.bias[n];
      for (int64_t k = 0; k < product.x.cols; ++k) {
        sum += element(product.x.data, dtype, t * product.x.stride + k) *
               element(product.w, dtype, n * product.w_stride + k);
      }
      product.y.row<float>(t)[n] = static_cast<float>(sum);
    }
  }
}

}  // namespace

struct Cublas::State {};

Cublas::Cublas(bool) {}
Cublas::~Cublas() = default;

void Cublas::multiply(cudaStream_t stream, const Product& product) {
  emulation::perform(stream, [product] { multiply_now(product); });
}

}  // namespace trireme::cuda
