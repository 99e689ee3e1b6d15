// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/error.h"
#include "tests/gpu/cudnn_attention.h"

namespace trireme {

struct Cudnn::State {};

Cudnn::Cudnn(cudaStream_t) {
  throw Error(Code::kFailedPrecondition,
              "cannot measure cuDNN: this program was built without its headers; let "
              "tests/gpu/run build it, which brings them");
}
Cudnn::~Cudnn() = default;
std::string Cudnn::description() const { return {}; }
std::unique_ptr<Cudnn::Attention> Cudnn::attention(Backend&, const AttentionShape&, CacheLayout) {
  return nullptr;
}

}  // namespace trireme
