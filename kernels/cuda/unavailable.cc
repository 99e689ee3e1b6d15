// SPDX-License-Identifier: Apache-2.0
// Stands for the whole of kernels/cuda in a build without CUDA.
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/peer_sum.h"

namespace trireme {

CudaDevices cuda_devices() {
  return {{}, "this build has no CUDA (configure with preset cuda)", false};
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  throw Error(Code::kFailedPrecondition,
              "cannot make a CUDA backend: this build has no CUDA; configure with "
              "`cmake --preset cuda`, or run with CPU ranks");
}

std::unique_ptr<PeerSum> make_peer_sum(Backend&, int, int, uint64_t) {
  throw Error(Code::kFailedPrecondition,
              "cannot sum over GPUs: this build has no CUDA; configure with `cmake --preset cuda`");
}

}  // namespace trireme
