// SPDX-License-Identifier: Apache-2.0
// Joins what the ranks found of themselves.
#pragma once

#include <cstdint>
#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

// Every rank reported its whole node: divides cores and memory among the ranks of a host. A core is
// shared by the ranks whose affinity holds it; each rank gets at least one thread. `threads` > 0
// overrides the share.
void share_nodes(Topology& topology, int32_t threads);

// "12.3 GiB"
std::string format_bytes(uint64_t bytes);

}  // namespace trireme
