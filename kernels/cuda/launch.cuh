// SPDX-License-Identifier: Apache-2.0
// How a kernel is queued, and the shared memory that a launch asks for. The emulation in
// tests/support/cuda_emulation has a file of this name in its place.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace trireme::cuda {

// What the launch does not know is found by cudaGetLastError().
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  kernel<<<grid, static_cast<unsigned>(threads), shared_bytes, stream>>>(
      static_cast<Parameters>(arguments)...);
}

// The shared_bytes of the launch, aligned to 16.
__device__ inline void* dynamic_shared_memory() {
  extern __shared__ uint4 shared[];
  return shared;
}

}  // namespace trireme::cuda
