// SPDX-License-Identifier: Apache-2.0
// Joins what the ranks found of themselves; topologies as files.
#pragma once

#include <cstdint>
#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

// Every rank reported its whole node. Gives each GPU to the first rank of its host that sees it and
// has none; the other ranks compute on cores: divides these and the memory among them. A core is
// shared by the ranks whose affinity holds it; each rank gets at least one thread. `threads` > 0
// overrides the share.
void share_nodes(Topology& topology, int32_t threads);

// Checks a topology from a file or a peer: counts, ranks and names that exist and are used once,
// speeds that are finite and not negative. Throws kInvalidArgument naming the place.
void validate_topology(const Topology& topology);

// Reads a Topology from a JSON file (as `trireme probe --json` writes it), or from a machine's or a
// fabric's file (machine_file.h), and validates it. Throws kNotFound or kInvalidArgument naming the
// file.
Topology read_topology(const std::string& path);
Topology topology_from_json(const std::string& json);
std::string topology_to_json(const Topology& topology);

// "12.3 GiB"
std::string format_bytes(uint64_t bytes);

}  // namespace trireme
