// SPDX-License-Identifier: Apache-2.0
// What this process can see of its machine, whole: topology.h divides it among the ranks of a node.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

// The cores that this process may run on, by its affinity mask.
std::vector<int32_t> allowed_cpus();

// The cores that this process may run on (affinity mask, and cgroup.h) and the memory that is
// available now (/proc/meminfo, or less if a cgroup says so).
DeviceInfo probe_cpu(const std::string& isa);

std::string host_name();

}  // namespace trireme
