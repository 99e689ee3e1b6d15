// SPDX-License-Identifier: Apache-2.0
// Stands for nccl.cc in a build without CUDA.
#include "kernels/base/error.h"
#include "worker/comm/nccl.h"

namespace trireme {

NcclVersion find_nccl(const std::string&) { return {0, "this build has no CUDA"}; }

std::unique_ptr<Nccl> make_nccl(Backend&, std::shared_ptr<QueuedWork>, const NcclOptions&) {
  throw Error(Code::kFailedPrecondition,
              "cannot use NCCL: this build has no CUDA; configure with `cmake --preset cuda`");
}

}  // namespace trireme
