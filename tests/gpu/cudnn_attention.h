// SPDX-License-Identifier: Apache-2.0
// cuDNN's fused attention, by its frontend's headers, for benchmarks: over the cache as it is, with
// its blocks as pages, and over one that is contiguous. The library is opened at run time.
// cudnn_missing.cc stands for it in a build that has no headers.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "tests/gpu/paged_attention.h"

namespace trireme {

class Cudnn {
 public:
  // What it runs is queued on `stream`. Throws Error with what is missing.
  explicit Cudnn(cudaStream_t stream);
  ~Cudnn();
  std::string description() const;  // "cuDNN 9.19.0 (…/libcudnn.so.9), frontend 1.32.0"

  // Of one shape.
  class Attention {
   public:
    virtual ~Attention() = default;
    virtual void run(const AttentionOperands& operands) = 0;
    virtual std::string plan() const = 0;  // the engine that was chosen, by cuDNN's name
  };
  // Throws Error with cuDNN's words where it has none.
  std::unique_ptr<Attention> attention(Backend& backend, const AttentionShape& shape,
                                       CacheLayout layout);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
