// SPDX-License-Identifier: Apache-2.0
// Pages of its own for every allocation, handed out full of NaN patterns.
#include "tests/support/cuda_emulation/memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

#include "kernels/base/check.h"

namespace trireme::cuda::emulation {
namespace {

struct Memory {
  std::mutex mutex;  // guards what follows
  std::map<void*, size_t> allocations;
  bool hidden = false;
  int users = 0;

  void protect_all(int protection) {
    for (const auto& [data, bytes] : allocations) {
      CHECK(mprotect(data, bytes, protection) == 0, "the pages of an emulated device");
    }
  }
};

Memory& memory() {
  static auto* const instance = new Memory;  // outlives whoever frees last
  return *instance;
}

constexpr int kUsable = PROT_READ | PROT_WRITE;

}  // namespace

void hide_memory() {
  const std::lock_guard lock(memory().mutex);
  memory().hidden = true;
  if (memory().users == 0) memory().protect_all(PROT_NONE);
}

DeviceAccess::DeviceAccess() {
  const std::lock_guard lock(memory().mutex);
  if (memory().users++ == 0 && memory().hidden) memory().protect_all(kUsable);
}

DeviceAccess::~DeviceAccess() {
  const std::lock_guard lock(memory().mutex);
  if (--memory().users == 0 && memory().hidden) memory().protect_all(PROT_NONE);
}

}  // namespace trireme::cuda::emulation

namespace emulation = trireme::cuda::emulation;

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (bytes == 0) {
    *data = nullptr;
    return cudaSuccess;
  }
  *data = mmap(nullptr, bytes, emulation::kUsable, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*data == MAP_FAILED) {
    *data = nullptr;
    return cudaErrorMemoryAllocation;
  }
  std::memset(*data, 0xFF, bytes);
  auto& memory = emulation::memory();
  const std::lock_guard lock(memory.mutex);
  memory.allocations[*data] = bytes;
  if (memory.hidden && memory.users == 0) mprotect(*data, bytes, PROT_NONE);
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  auto& memory = emulation::memory();
  const std::lock_guard lock(memory.mutex);
  const auto found = memory.allocations.find(data);
  if (found == memory.allocations.end()) return cudaErrorInvalidValue;
  munmap(data, found->second);
  memory.allocations.erase(found);
  return cudaSuccess;
}

}  // extern "C"
