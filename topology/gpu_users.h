// SPDX-License-Identifier: Apache-2.0
// Who else computes on a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "topology/probe_machine.h"

namespace trireme {

// "process 4711 (3.0 GiB), process 99 (612.0 MiB)", as the driver tells it, the largest first;
// empty: nobody but `own_pid`, or the driver does not tell. In a container its numbers are the
// host's.
std::string describe_gpu_users(const std::string& pci_id, int64_t own_pid,
                               const std::string& nvml_library = ProbeSources().nvml_library);

}  // namespace trireme
