// SPDX-License-Identifier: Apache-2.0
// The backend of CPUs: operations on packed weights by a team of threads. What make_backend()
// calls.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace trireme {

// Throws kInvalidArgument for a bad number of threads or name of an instruction set, and
// kFailedPrecondition for an instruction set that this machine lacks.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace trireme
