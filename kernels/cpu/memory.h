// SPDX-License-Identifier: Apache-2.0
// Host memory of the CPU backend: pages straight from the kernel, zeroed, huge where they can be.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/tensor.h"

namespace trireme::cpu {

// Zeroed pages. An empty Buffer for 0 bytes. Throws kResourceExhausted with the number of bytes.
Buffer allocate_pages(size_t bytes);

// Scratch of each thread of a backend; only grows, so that a shape seen before allocates nothing.
class Workspace {
 public:
  explicit Workspace(int threads) : buffers_(static_cast<size_t>(threads)) {}

  // Makes every thread's scratch at least this large. Called outside of parallel_for: it may throw.
  void reserve(size_t bytes);
  size_t bytes() const;  // of all threads
  void* of(int thread) const { return buffers_[static_cast<size_t>(thread)].data(); }

 private:
  std::vector<Buffer> buffers_;
};

}  // namespace trireme::cpu
