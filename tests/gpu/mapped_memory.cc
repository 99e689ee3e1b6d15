// SPDX-License-Identifier: Apache-2.0
// Puts the CUDA backend's memory where the host can look at it, so that the tests of operations run
// on a GPU as they are: the linker sends cudaMalloc here (--wrap), and what comes is memory of the
// host that the GPU reaches over its bus. Kernels are waited for where they are launched:
// tests/gpu/run sets CUDA_LAUNCH_BLOCKING.
#include <cuda_runtime_api.h>

#include <new>

#include "tests/support/readable_memory.h"

extern "C" {

cudaError_t __real_cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream);
cudaError_t __real_cudaMemset2DAsync(void* data, size_t pitch, int value, size_t width,
                                     size_t height, cudaStream_t stream);

cudaError_t __wrap_cudaMalloc(void** data, size_t bytes) {
  return cudaHostAlloc(data, bytes, cudaHostAllocMapped);
}

cudaError_t __wrap_cudaFree(void* data) { return cudaFreeHost(data); }

cudaError_t __wrap_cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  const cudaError_t code = __real_cudaMemsetAsync(data, value, bytes, stream);
  return code != cudaSuccess ? code : cudaStreamSynchronize(stream);
}

cudaError_t __wrap_cudaMemset2DAsync(void* data, size_t pitch, int value, size_t width,
                                     size_t height, cudaStream_t stream) {
  const cudaError_t code = __real_cudaMemset2DAsync(data, pitch, value, width, height, stream);
  return code != cudaSuccess ? code : cudaStreamSynchronize(stream);
}

}  // extern "C"

namespace trireme {

void* allocate_readable(size_t bytes) {
  void* data = nullptr;
  if (cudaHostAlloc(&data, bytes, cudaHostAllocMapped) != cudaSuccess) throw std::bad_alloc();
  return data;
}
void free_readable(void* data) { cudaFreeHost(data); }
bool gpu_memory_is_readable() { return true; }

}  // namespace trireme
