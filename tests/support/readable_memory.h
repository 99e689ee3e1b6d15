// SPDX-License-Identifier: Apache-2.0
// Memory that tests and the kernels of the device under test can both touch. A program takes it
// from readable_memory.cc (the host's) with unreadable_gpu.cc or cuda_emulation/readable.cc beside
// it, or from tests/gpu/mapped_memory.cc (the host's, which a GPU reaches too).
#pragma once

#include <cstddef>
#include <vector>

namespace trireme {

void* allocate_readable(size_t bytes);
void free_readable(void* data);
// Whether the host can also touch what a CUDA backend allocates.
bool gpu_memory_is_readable();

template <typename T>
struct ReadableAllocator {
  using value_type = T;
  ReadableAllocator() = default;
  template <typename U>
  explicit ReadableAllocator(const ReadableAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(allocate_readable(count * sizeof(T))); }
  void deallocate(T* data, size_t) { free_readable(data); }
  bool operator==(const ReadableAllocator&) const { return true; }
};

template <typename T>
using Readable = std::vector<T, ReadableAllocator<T>>;

}  // namespace trireme
