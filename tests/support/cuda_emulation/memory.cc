// SPDX-License-Identifier: Apache-2.0
// Pages of its own for every allocation, handed out full of NaN patterns.
#include "tests/support/cuda_emulation/memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

#include "kernels/base/check.h"
#include "tests/support/cuda_emulation/graphs.h"

namespace trireme::cuda::emulation {
namespace {

constexpr int kUsable = PROT_READ | PROT_WRITE;

// Where the processor has protection keys a thread opens and shuts all pages by a register of its
// own, which new threads inherit; else all pages are changed, for everyone.
struct Memory {
  int key = -1;      // of hidden memory; -1: there is none
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

}  // namespace

void hide_memory() {
  const std::lock_guard lock(memory().mutex);
  memory().key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
  if (memory().key >= 0) return;
  memory().hidden = true;
  if (memory().users == 0) memory().protect_all(PROT_NONE);
}

DeviceAccess::DeviceAccess() {
  if (memory().key >= 0) {
    rights_before_ = pkey_get(memory().key);
    pkey_set(memory().key, 0);
    return;
  }
  const std::lock_guard lock(memory().mutex);
  if (memory().users++ == 0 && memory().hidden) memory().protect_all(kUsable);
}

DeviceAccess::~DeviceAccess() {
  if (memory().key >= 0) {
    pkey_set(memory().key, static_cast<unsigned>(rights_before_));
    return;
  }
  const std::lock_guard lock(memory().mutex);
  if (--memory().users == 0 && memory().hidden) memory().protect_all(PROT_NONE);
}

}  // namespace trireme::cuda::emulation

namespace emulation = trireme::cuda::emulation;

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (emulation::recording()) return cudaErrorStreamCaptureUnsupported;
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
  if (memory.key >= 0) {
    CHECK(pkey_mprotect(*data, bytes, emulation::kUsable, memory.key) == 0, "an allocation's key");
  }
  const std::lock_guard lock(memory.mutex);
  memory.allocations[*data] = bytes;
  if (memory.hidden && memory.users == 0) mprotect(*data, bytes, PROT_NONE);
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (emulation::recording()) return cudaErrorStreamCaptureUnsupported;
  auto& memory = emulation::memory();
  const std::lock_guard lock(memory.mutex);
  const auto found = memory.allocations.find(data);
  if (found == memory.allocations.end()) return cudaErrorInvalidValue;
  munmap(data, found->second);
  memory.allocations.erase(found);
  return cudaSuccess;
}

}  // extern "C"
