// SPDX-License-Identifier: Apache-2.0
// Weights on their way to the GPU: while one part is copied the next is read. Owned by a
// CudaBackend and used by its thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/tensor.h"

namespace trireme::cuda {

class WeightStaging {
 public:
  WeightStaging() = default;
  ~WeightStaging();
  WeightStaging(const WeightStaging&) = delete;

  // Queues the copy of rows in host memory to `to`, where a row takes `pitch` bytes, padded with
  // zeros. `rows` may change when it returns.
  void send(cudaStream_t stream, std::byte* to, size_t pitch, const Tensor& rows);

 private:
  static constexpr size_t kPartBytes = 16u << 20;

  void allocate(size_t bytes);
  void free();

  std::byte* parts_[2] = {};    // pinned
  cudaEvent_t copied_[2] = {};  // the last copy out of each
  size_t bytes_ = 0;            // of each part
  int next_ = 0;
};

}  // namespace trireme::cuda
