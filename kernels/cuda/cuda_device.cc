// SPDX-License-Identifier: Apache-2.0
// Device discovery through the CUDA runtime, which loads the driver by itself and reports its
// absence as an error code; linking the driver library would keep the program from starting.
#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <array>

#include "kernels/base/error.h"

namespace trireme {
namespace {

void cuda_check(cudaError_t code, const char* action) {
  if (code == cudaSuccess) return;
  throw Error(Code::kInternal, std::string("cannot ") + action + ": " + cudaGetErrorString(code) +
                                   "; look at nvidia-smi and the kernel log");
}

CudaDevice describe(int index) {
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, index), "read the properties of a CUDA device");
  std::array<char, 32> pci_id{};
  cuda_check(cudaDeviceGetPCIBusId(pci_id.data(), static_cast<int>(pci_id.size()), index),
             "read the PCI address of a CUDA device");
  return {properties.name, pci_id.data(), static_cast<int64_t>(properties.totalGlobalMem)};
}

}  // namespace

CudaDevices cuda_devices() {
  CudaDevices found;
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

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  const CudaDevices found = cuda_devices();
  const std::string device =
      found.devices.empty() ? "no device (" + found.reason + ")" : found.devices[0].name;
  throw Error(Code::kFailedPrecondition, "cannot make a CUDA backend: found " + device +
                                             ", but this build has device discovery only; run "
                                             "with CPU ranks");
}

}  // namespace trireme
