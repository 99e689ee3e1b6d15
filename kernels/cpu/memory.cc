// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <cstring>
#include <string>

#include "kernels/base/error.h"

namespace trireme::cpu {
namespace {

// From here on a huge page saves TLB misses; below, it would only waste memory.
constexpr size_t kHugePageBytes = size_t{2} << 20;

void free_pages(void* data, size_t bytes) { munmap(data, bytes); }

}  // namespace

Buffer allocate_pages(size_t bytes) {
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error(Code::kResourceExhausted,
                "cannot allocate " + std::to_string(bytes) +
                    " bytes of host memory: the system refused; use more ranks, a smaller "
                    "--context or a smaller --dtype");
  }
  // Advice only: without huge pages everything works, slower.
  if (bytes >= kHugePageBytes) madvise(data, bytes, MADV_HUGEPAGE);
  return {data, bytes, free_pages};
}

size_t Workspace::bytes() const {
  size_t total = 0;
  for (const Buffer& buffer : buffers_) total += buffer.bytes();
  return total;
}

void Workspace::reserve(size_t bytes) {
  for (Buffer& buffer : buffers_) {
    if (buffer.bytes() >= bytes) continue;
    buffer = allocate_pages(bytes);
    std::memset(buffer.data(), 0, bytes);  // so that it is there, not promised
  }
}

}  // namespace trireme::cpu
