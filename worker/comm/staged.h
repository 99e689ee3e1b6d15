// SPDX-License-Identifier: Apache-2.0
// Tensors in a device's memory over a transport that only reaches the host's.
#pragma once

#include <functional>
#include <memory>

#include "worker/comm/communicator.h"

namespace trireme {

// A communicator for tensors of `backend`: `host` itself where these lie in the host's memory, else
// one that copies each tensor down, lets `host` work on the copy, and copies the result up. What
// other members of the group have is their own matter: a CPU rank and a GPU rank understand each
// other. The backend outlives it. settle: called before the backend is waited for, if not empty.
std::unique_ptr<Communicator> stage_through_host(std::unique_ptr<Communicator> host,
                                                 Backend& backend,
                                                 std::function<void()> settle = {});

}  // namespace trireme
