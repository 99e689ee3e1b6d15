// SPDX-License-Identifier: Apache-2.0
// Measured links that are far under what they should be. Pure.
#pragma once

#include <string>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

// Beyond so many times the latency of its like, or under that part of their bandwidth, a link is
// far from them; told from this many on.
inline constexpr double kFarFromLike = 3;
inline constexpr size_t kLeastAlike = 4;

// Marks the measured links far from their like (within a node, between nodes) and those far under
// what their interface has, with the reason. Not within nodes that have more ranks than cores:
// there messages wait for a turn. Returns a sentence for each of the second kind, the worst first.
std::vector<std::string> mark_slow_links(Topology& topology);

}  // namespace trireme
