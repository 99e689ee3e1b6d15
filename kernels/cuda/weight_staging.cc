// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/weight_staging.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_check.h"

namespace trireme::cuda {

WeightStaging::~WeightStaging() { free(); }

void WeightStaging::free() {
  for (int i = 0; i < 2; ++i) {
    if (copied_[i] != nullptr) {
      cudaEventSynchronize(copied_[i]);
      cudaEventDestroy(copied_[i]);
    }
    cudaFreeHost(parts_[i]);
    parts_[i] = nullptr;
    copied_[i] = nullptr;
  }
  bytes_ = 0;
}

void WeightStaging::allocate(size_t bytes) {
  free();
  for (int i = 0; i < 2; ++i) {
    void* data = nullptr;
    cuda_check(cudaMallocHost(&data, bytes), "allocate pinned memory for weights");
    parts_[i] = static_cast<std::byte*>(data);
    cuda_check(cudaEventCreateWithFlags(&copied_[i], cudaEventDisableTiming), "make a CUDA event");
  }
  bytes_ = bytes;
}

void WeightStaging::send(cudaStream_t stream, std::byte* to, size_t pitch, const Tensor& rows) {
  if (bytes_ < std::max(pitch, kPartBytes)) allocate(std::max(pitch, kPartBytes));
  const auto row_bytes = static_cast<size_t>(rows.cols * element_size(rows.dtype));
  const auto at_once = static_cast<int64_t>(bytes_ / pitch);
  for (int64_t first = 0; first < rows.rows; first += at_once) {
    const int64_t count = std::min(at_once, rows.rows - first);
    std::byte* const part = parts_[next_];
    cuda_check(cudaEventSynchronize(copied_[next_]), "wait for a copy to the GPU");
    for (int64_t i = 0; i < count; ++i) {
      std::byte* const row = part + static_cast<size_t>(i) * pitch;
      std::memcpy(row, rows.at(first + i), row_bytes);
      std::memset(row + row_bytes, 0, pitch - row_bytes);
    }
    const size_t bytes = static_cast<size_t>(count) * pitch;
    cuda_check(cudaMemcpyAsync(to + static_cast<size_t>(first) * pitch, part, bytes,
                               cudaMemcpyHostToDevice, stream),
               "copy weights to the GPU");
    cuda_check(cudaEventRecord(copied_[next_], stream), "record a CUDA event");
    next_ = 1 - next_;
  }
}

}  // namespace trireme::cuda
