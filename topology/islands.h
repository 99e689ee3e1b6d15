// SPDX-License-Identifier: Apache-2.0
// Where tensor parallelism may live in a machine, and what it costs there before anyone measured.
#pragma once

#include <cstddef>
#include <vector>

#include "proto/cluster.pb.h"
#include "topology/machine.h"

namespace trireme {

// Groups of two or more GPUs, by their indexes: joined by NVLink or xGMI; else, for those that
// never had such links, by PCIe switch and socket; else all of the machine. A GPU that lost its
// links is in none. In a group neighbours are nearest: pairs, fours and eights from its front on
// are the best ones.
std::vector<std::vector<size_t>> find_islands(const Machine& machine);

// The weakest link of the group that joins two of it directly.
LinkSpeed island_link(const Machine& machine, const std::vector<size_t>& island);

// The nominal cost of an all-reduce in the group. Tables of one name are equal.
AllReduceTable nominal_table(const Machine& machine, const std::vector<size_t>& island);

}  // namespace trireme
