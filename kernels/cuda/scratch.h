// SPDX-License-Identifier: Apache-2.0
// Memory that a CudaBackend works with. Owned by it and used by its thread.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/tensor.h"

namespace trireme::cuda {

inline void free_device(void* data, size_t) { cudaFree(data); }

// Memory that an operation needs while it runs. Grows to the largest size seen; what was too small
// stays until the stream has passed it: to wait for that here could mean to wait for another rank.
class Scratch {
 public:
  void* get(size_t bytes) {
    if (bytes <= buffer_.bytes()) return buffer_.data();
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, bytes), "allocate the GPU's scratch memory");
    outgrown_.push_back(std::move(buffer_));
    buffer_ = Buffer(data, bytes, free_device);
    ++moves_;
    return data;
  }
  size_t bytes() const { return buffer_.bytes(); }
  // How often what it gave before became another's.
  uint64_t moves() const { return moves_; }
  // REQUIRES: the stream is idle.
  void free_outgrown() { outgrown_.clear(); }

 private:
  Buffer buffer_;
  std::vector<Buffer> outgrown_;
  uint64_t moves_ = 0;
};

// Pinned memory of the host, for what is on its way to or from the GPU.
class Pinned {
 public:
  static constexpr size_t kBytes = 8u << 20;

  Pinned() {
    void* data = nullptr;
    cuda_check(cudaMallocHost(&data, kBytes), "allocate pinned memory");
    buffer_ = Buffer(data, kBytes, [](void* pinned, size_t) { cudaFreeHost(pinned); });
  }
  // Null if there are not so many bytes until clear().
  std::byte* take(size_t bytes) {
    constexpr size_t kAlignment = 16;
    if (bytes > kBytes - used_) return nullptr;
    std::byte* const taken = static_cast<std::byte*>(buffer_.data()) + used_;
    used_ = std::min(kBytes, (used_ + bytes + kAlignment - 1) / kAlignment * kAlignment);
    return taken;
  }
  // REQUIRES: the stream is idle.
  void clear() { used_ = 0; }

 private:
  Buffer buffer_;
  size_t used_ = 0;
};

}  // namespace trireme::cuda
