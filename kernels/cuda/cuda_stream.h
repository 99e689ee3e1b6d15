// SPDX-License-Identifier: Apache-2.0
// The stream of a CUDA backend, for those who queue work between its operations.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/backend.h"

namespace trireme::cuda {

// REQUIRES: the backend was made by make_cuda_backend(). Ends with it.
cudaStream_t stream_of(Backend& backend);

}  // namespace trireme::cuda
