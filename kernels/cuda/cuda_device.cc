// SPDX-License-Identifier: Apache-2.0
// Device discovery through the CUDA runtime, which loads the driver by itself and reports its
// absence as an error code; linking the driver library would keep the program from starting.
#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <array>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_check.h"

namespace trireme {

void cuda::cuda_check(cudaError_t code, const char* action) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the runtime keeps it; a later check must not find it again
  const bool no_memory = code == cudaErrorMemoryAllocation;
  throw Error(no_memory ? Code::kResourceExhausted : Code::kInternal,
              std::string("cannot ") + action + ": " + cudaGetErrorString(code) +
                  (no_memory ? "; look at nvidia-smi for what else uses the device"
                             : "; look at nvidia-smi and the kernel log"));
}

namespace {

using cuda::cuda_check;

CudaDevice describe(int index) {
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, index), "read the properties of a CUDA device");
  std::array<char, 32> pci_id{};
  cuda_check(cudaDeviceGetPCIBusId(pci_id.data(), static_cast<int>(pci_id.size()), index),
             "read the PCI address of a CUDA device");
  return {properties.name, pci_id.data(), static_cast<int64_t>(properties.totalGlobalMem),
          properties.major * 10 + properties.minor};
}

}  // namespace

CudaDevices cuda_devices() {
  CudaDevices found;
  found.built = true;
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();  // the runtime keeps the error; a later call must not report it again
    found.reason = cudaGetErrorString(code);
    return found;
  }
  if (count == 0) found.reason = "the driver reports no device";
  for (int i = 0; i < count; ++i) found.devices.push_back(describe(i));
  return found;
}

}  // namespace trireme
