// SPDX-License-Identifier: Apache-2.0
// The one translation of CUDA's error codes.
#pragma once

#include <cuda_runtime_api.h>

namespace trireme::cuda {

// Throws kResourceExhausted for want of memory, else kInternal: "cannot ACTION: …".
void cuda_check(cudaError_t code, const char* action);

}  // namespace trireme::cuda
