// SPDX-License-Identifier: Apache-2.0
// Device code on the CPU: stands where kernels/cuda/launch.cuh stands in a build for GPUs, so that
// the kernels' own sources run in tests on machines without one. Each thread of a cta is a fiber,
// and a cta runs after the other; barriers and exchanges within a warp are real, a kernel that
// would hang on a GPU fails. Threads of the process have a device each: their kernels run beside
// each other. Slow, and no word about speed, races between ctas or the memory model.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "tests/support/cuda_emulation/graphs.h"

namespace trireme::cuda {
namespace emulation {

// The fiber that runs.
const uint3& thread_index();
const uint3& cta_index();
const dim3& cta_size();
const dim3& grid_size();
int lane();
void* shared_memory();
void wait_for_cta();
// Lets others go on, of the cta and then of the machine.
void wait_for_others();
// Gives 64 bytes of each lane of the warp to all its lanes; `all` [32][64] is valid until the next
// call of any of them.
constexpr size_t kExchangeBytes = 64;
const std::byte* exchange(const void* mine, size_t bytes);
// A copy that is done when the fiber waits for it.
void copy_later(void* to, const void* from, size_t bytes);
void close_group();
void wait_for_all_groups_but(size_t latest);

void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body);

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  emulation::perform(stream, [=] {
    emulation::run(grid, threads, shared_bytes,
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
  });
}

// One kernel is done when the next begins.
inline void let_next_begin() {}
inline void after_previous() {}
inline void begin() {}

inline void* dynamic_shared_memory() { return emulation::shared_memory(); }

inline void store_word(uint64_t* at, uint64_t value) {
  __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
inline uint64_t load_word(const uint64_t* at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
inline void store_flag(uint64_t* at, uint64_t value) {
  __atomic_store_n(at, value, __ATOMIC_RELEASE);
}
inline uint64_t load_flag(const uint64_t* at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
inline void pause_between_looks() { emulation::wait_for_others(); }

// ---- what the compiler for devices has of its own ----

#define threadIdx (::trireme::cuda::emulation::thread_index())
#define blockIdx (::trireme::cuda::emulation::cta_index())
#define blockDim (::trireme::cuda::emulation::cta_size())
#define gridDim (::trireme::cuda::emulation::grid_size())
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static thread_local

using std::max;
using std::min;

inline void __syncthreads() { emulation::wait_for_cta(); }

template <typename T>
T value_of_lane(T value, int from) {
  const std::byte* all = emulation::exchange(&value, sizeof(value));
  T theirs;
  std::memcpy(&theirs, all + from * emulation::kExchangeBytes, sizeof(theirs));
  return theirs;
}
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return value_of_lane(value, from);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return value_of_lane(value, emulation::lane() ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const int from = emulation::lane() - static_cast<int>(delta);
  return value_of_lane(value, from < 0 ? emulation::lane() : from);
}

inline unsigned __ballot_sync(unsigned, bool yes) {
  const std::byte* all = emulation::exchange(&yes, sizeof(yes));
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (all[lane * emulation::kExchangeBytes] != std::byte{0}) ballot |= 1u << lane;
  }
  return ballot;
}
inline int __any_sync(unsigned, bool yes) { return __ballot_sync(0, yes) != 0 ? 1 : 0; }
inline void __syncwarp() { __ballot_sync(0, false); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Fibers take turns only where they wait.
inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
inline void __threadfence() {}

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

}  // namespace trireme::cuda
