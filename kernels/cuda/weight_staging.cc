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

std::byte* WeightStaging::part(int64_t rows, int64_t pitch, int64_t row_bytes) {
  const auto needed = static_cast<size_t>(rows * pitch);
  if (bytes_ < std::max(needed, kPartBytes)) allocate(std::max(needed, kPartBytes));
  current_ = 1 - current_;
  cuda_check(cudaEventSynchronize(copied_[current_]), "wait for a copy to the GPU");
  std::byte* const part = parts_[current_];
  for (int64_t row = 0; row < rows && row_bytes < pitch; ++row) {
    std::memset(part + row * pitch + row_bytes, 0, static_cast<size_t>(pitch - row_bytes));
  }
  return part;
}

bool WeightStaging::in_part(const Tensor& rows, size_t pitch) const {
  if (static_cast<size_t>(rows.stride * element_size(rows.dtype)) != pitch) return false;
  const auto* const first = static_cast<const std::byte*>(rows.data);
  const std::byte* const part = parts_[current_];
  return part != nullptr && first >= part && first < part + bytes_;
}

void WeightStaging::copy(cudaStream_t stream, std::byte* to, const void* from, size_t bytes) {
  cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream),
             "copy weights to the GPU");
  cuda_check(cudaEventRecord(copied_[current_], stream), "record a CUDA event");
}

void WeightStaging::send(cudaStream_t stream, std::byte* to, size_t pitch, const Tensor& rows) {
  if (in_part(rows, pitch)) {
    return copy(stream, to, rows.data, static_cast<size_t>(rows.rows) * pitch);
  }
  const auto row_bytes = static_cast<size_t>(rows.cols * element_size(rows.dtype));
  const auto at_once = std::max<int64_t>(static_cast<int64_t>(kPartBytes / pitch), 1);
  for (int64_t first = 0; first < rows.rows; first += at_once) {
    const int64_t count = std::min(at_once, rows.rows - first);
    std::byte* const made =
        part(count, static_cast<int64_t>(pitch), static_cast<int64_t>(row_bytes));
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(made + static_cast<size_t>(i) * pitch, rows.at(first + i), row_bytes);
    }
    copy(stream, to + static_cast<size_t>(first) * pitch, made, static_cast<size_t>(count) * pitch);
  }
}

}  // namespace trireme::cuda
