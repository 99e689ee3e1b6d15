// SPDX-License-Identifier: Apache-2.0
// How a kernel is queued, and the shared memory that a launch asks for. The emulation in
// tests/support/cuda_emulation has a file of this name in its place.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace trireme::cuda {

// Kernels may be brought to the GPU while the one before them in the stream ends ("programmatic
// dependent launch" of the CUDA C++ Programming Guide; compute capability 9.0), which hides what a
// launch costs. So each kernel begins with begin(), or with let_next_begin() and, before it touches
// anything that an earlier one writes or reads, after_previous(). What is read after that must not
// go through the cache for constants (__ldg, __restrict__): it could be read before.
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void begin() {
  let_next_begin();
  after_previous();
}

template <typename>
__global__ void waiting_kernel() {
  begin();
}

// Whether the code for the GPU that is current when it is first asked waits: a process uses one
// GPU, or several alike. Code for older ones, compiled for a newer one by the driver, does not.
inline bool launches_early() {
  constexpr int kFirst = 90;
  static const bool possible = [] {
    cudaFuncAttributes code{};
    return cudaFuncGetAttributes(&code, waiting_kernel<void>) == cudaSuccess &&
           code.ptxVersion >= kFirst && code.binaryVersion >= kFirst;
  }();
  return possible;
}

// What the launch does not know is found by cudaGetLastError().
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = launches_early() ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Words that GPUs write into each other's memory, and the host into its own that they read. Each is
// read whole, as it was written once; whoever reads a flag with load_flag() sees all that its
// writer had written, or had seen across a barrier, before store_flag().
__device__ inline void store_word(uint64_t* at, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
__device__ inline uint64_t load_word(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
__device__ inline void store_flag(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
__device__ inline uint64_t load_flag(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
// Between two looks at such a word.
__device__ inline void pause_between_looks() {}

// The shared_bytes of the launch, aligned to 16.
__device__ inline void* dynamic_shared_memory() {
  extern __shared__ uint4 shared[];
  return shared;
}

}  // namespace trireme::cuda
