// SPDX-License-Identifier: Apache-2.0
// Errors as gRPC statuses.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <optional>
#include <string>

#include "kernels/base/error.h"

namespace trireme {

// retry_delay above 0: with a google.rpc.RetryInfo among its details.
grpc::Status to_status(Code code, const std::string& message,
                       std::chrono::milliseconds retry_delay = {});

// What such a status says; nullopt: it is none.
std::optional<std::chrono::milliseconds> retry_delay_of(const grpc::Status& status);

}  // namespace trireme
