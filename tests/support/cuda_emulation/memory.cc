// SPDX-License-Identifier: Apache-2.0
// Pages of its own for every allocation, handed out full of NaN patterns. What a process exports
// lies in an unnamed file from then on, which others open by way of /proc.
#include "tests/support/cuda_emulation/memory.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/base/check.h"
#include "tests/support/cuda_emulation/graphs.h"

namespace trireme::cuda::emulation {
namespace {

constexpr int kUsable = PROT_READ | PROT_WRITE;

// What a handle of an export says.
struct Export {
  int64_t process = 0;
  int32_t file = 0;
  uint64_t bytes = 0;
};
static_assert(sizeof(Export) <= sizeof(cudaIpcMemHandle_t));

constexpr int kElsewhere = -1;  // the device of what was opened: its owner has counted it
struct Allocation {
  size_t bytes;
  int device;
};

// Where the processor has protection keys a thread opens and shuts all pages by a register of its
// own, which new threads inherit; else all pages are changed, for everyone.
struct Memory {
  int key = -1;                             // of hidden memory; -1: there is none
  std::mutex mutex;                         // guards what follows
  std::map<void*, Allocation> allocations;  // and what was opened of others
  std::map<void*, int> exports;             // their files
  bool hidden = false;
  int users = 0;

  void lock_with_key(void* data, size_t bytes) const {
    if (key < 0) return;
    CHECK(pkey_mprotect(data, bytes, kUsable, key) == 0, "an allocation's key");
  }
  void protect_all(int protection) {
    for (const auto& [data, allocation] : allocations) {
      CHECK(mprotect(data, allocation.bytes, protection) == 0, "the pages of an emulated device");
    }
  }
};

uint64_t taken_at_start() {
  const char* const bytes = std::getenv("TRIREME_EMULATED_MEMORY_TAKEN");
  return bytes == nullptr ? 0 : std::strtoull(bytes, nullptr, 10);
}
std::atomic<uint64_t> taken{taken_at_start()};
thread_local int device_of_thread = 0;

Memory& memory() {
  static auto* const instance = new Memory;  // outlives whoever frees last
  return *instance;
}

// REQUIRES: memory().mutex is held.
uint64_t free_bytes() {
  uint64_t used = taken;
  for (const auto& [data, allocation] : memory().allocations) {
    if (allocation.device == device_of_thread) used += allocation.bytes;
  }
  return used < kMemoryBytes ? kMemoryBytes - used : 0;
}

}  // namespace

void take_memory(uint64_t bytes) { taken = bytes; }
void choose_device(int device) { device_of_thread = device; }
int chosen_device() { return device_of_thread; }

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
  if (emulation::spoils_recording()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) {
    *data = nullptr;
    return cudaSuccess;
  }
  auto& memory = emulation::memory();
  const std::lock_guard lock(memory.mutex);
  *data = nullptr;
  if (bytes > emulation::free_bytes()) return cudaErrorMemoryAllocation;
  *data = mmap(nullptr, bytes, emulation::kUsable, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*data == MAP_FAILED) {
    *data = nullptr;
    return cudaErrorMemoryAllocation;
  }
  std::memset(*data, 0xFF, bytes);
  memory.lock_with_key(*data, bytes);
  memory.allocations[*data] = {bytes, emulation::chosen_device()};
  if (memory.hidden && memory.users == 0) mprotect(*data, bytes, PROT_NONE);
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (emulation::spoils_recording()) return cudaErrorStreamCaptureUnsupported;
  emulation::wait_for_own_streams();
  auto& memory = emulation::memory();
  const std::lock_guard lock(memory.mutex);
  const auto found = memory.allocations.find(data);
  if (found == memory.allocations.end()) return cudaErrorInvalidValue;
  munmap(data, found->second.bytes);
  memory.allocations.erase(found);
  const auto exported = memory.exports.find(data);
  if (exported != memory.exports.end()) {
    close(exported->second);
    memory.exports.erase(exported);
  }
  return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data) {
  auto& memory = emulation::memory();
  const emulation::DeviceAccess access;
  const std::lock_guard lock(memory.mutex);
  const auto found = memory.allocations.find(data);
  if (found == memory.allocations.end()) return cudaErrorInvalidValue;
  const size_t bytes = found->second.bytes;
  auto& exports = memory.exports;
  if (!exports.contains(data)) {
    const int file = memfd_create("emulated GPU memory", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0 ||
        pwrite(file, data, bytes, 0) != static_cast<ssize_t>(bytes) ||
        mmap(data, bytes, emulation::kUsable, MAP_SHARED | MAP_FIXED, file, 0) != data) {
      return cudaErrorMemoryAllocation;
    }
    memory.lock_with_key(data, bytes);
    exports[data] = file;
  }
  const emulation::Export made{getpid(), exports[data], bytes};
  std::memcpy(handle, &made, sizeof(made));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle, unsigned) {
  emulation::Export made;
  std::memcpy(static_cast<void*>(&made), &handle, sizeof(made));
  if (made.process == getpid()) return cudaErrorInvalidResourceHandle;  // as CUDA has it
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%lld/fd/%d", static_cast<long long>(made.process),
                made.file);
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return cudaErrorInvalidValue;
  void* const opened = mmap(nullptr, made.bytes, emulation::kUsable, MAP_SHARED, file, 0);
  close(file);
  if (opened == MAP_FAILED) return cudaErrorMapBufferObjectFailed;
  auto& memory = emulation::memory();
  memory.lock_with_key(opened, made.bytes);
  const std::lock_guard lock(memory.mutex);
  memory.allocations[opened] = {made.bytes, emulation::kElsewhere};
  if (memory.hidden && memory.users == 0) mprotect(opened, made.bytes, PROT_NONE);
  *data = opened;
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* data) { return cudaFree(data); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(emulation::memory().mutex);
  *free = emulation::free_bytes();
  *total = emulation::kMemoryBytes;
  return cudaSuccess;
}

}  // extern "C"
