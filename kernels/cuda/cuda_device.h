// SPDX-License-Identifier: Apache-2.0
// CUDA devices of this machine. One of two sources stands behind this header, as CMake picks:
// cuda_device.cc with TRIREME_CUDA, else unavailable.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace trireme {

struct CudaDevice {
  std::string name;
  std::string pci_id;  // "0000:3b:00.0"
  int64_t memory_bytes = 0;
  int32_t compute_capability = 0;  // 90 for 9.0
};

struct CudaDevices {
  std::vector<CudaDevice> devices;  // in the runtime's order
  std::string reason;               // why there is none; empty if there is one
  bool built = false;               // whether this build could use one
};

// Never throws for want of a driver or a device: that is an answer.
CudaDevices cuda_devices();

// Throws kFailedPrecondition saying what is missing.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace trireme
