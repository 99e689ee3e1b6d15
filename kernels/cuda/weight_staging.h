// SPDX-License-Identifier: Apache-2.0
// Weights on their way to the GPU: while one part is copied the next is made. Owned by a
// CudaBackend and used by its thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace trireme::cuda {

class WeightStaging {
 public:
  WeightStaging() = default;
  ~WeightStaging();
  WeightStaging(const WeightStaging&) = delete;

  // Pinned memory for so many rows, until the next call: `pitch` bytes from one to the next, of
  // which those behind the first row_bytes are zeros.
  std::byte* part(int64_t rows, int64_t pitch, int64_t row_bytes);

  // Queues the copy of rows to `to`, where a row takes `pitch` bytes, padded with zeros. Rows that
  // lie in the part with that pitch must stay as they are; others may change when it returns.
  void send(cudaStream_t stream, std::byte* to, size_t pitch, const Tensor& rows);

 private:
  static constexpr size_t kPartBytes = 16u << 20;

  void allocate(size_t bytes);
  void free();
  bool in_part(const Tensor& rows, size_t pitch) const;
  void copy(cudaStream_t stream, std::byte* to, const void* from, size_t bytes);

  std::byte* parts_[2] = {};    // pinned
  cudaEvent_t copied_[2] = {};  // the last copy out of each
  size_t bytes_ = 0;            // of each part
  int current_ = 0;
};

}  // namespace trireme::cuda
