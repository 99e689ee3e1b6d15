// SPDX-License-Identifier: Apache-2.0
// Errors as gRPC statuses.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <string>

#include "kernels/base/error.h"

namespace trireme {

// retry_delay above 0: with a google.rpc.RetryInfo among its details.
grpc::Status to_status(Code code, const std::string& message,
                       std::chrono::milliseconds retry_delay = {});

}  // namespace trireme
