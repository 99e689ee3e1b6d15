// SPDX-License-Identifier: Apache-2.0
// What was measured of devices and of groups of them goes into a topology in place of what tables
// assume. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/preflight.pb.h"

namespace trireme {

using SpeedReports = std::map<int32_t, SpeedReport>;  // by rank

// The degrees that are measured among `count` ranks of a node, ascending.
std::vector<int32_t> reduce_degrees(size_t count);

// Whether a rank can have found this: numbers of devices that there are, and rows of these degrees.
bool is_sound(const SpeedReport& report, const std::vector<int32_t>& degrees);

// Devices that seem far under their like, which a second look should confirm.
std::vector<int32_t> seem_slow(const Topology& topology, const SpeedReports& reports);

// Sets the devices' speeds, the ranks of a node as an island with its all-reduce table, and what
// messages between nodes reach where the links of some of them were measured. Measurements of equal
// devices differ by noise: alike ones get one speed, what is far under it is a class of its own.
// Returns sentences: what is degraded, and by how much. REQUIRES: sound reports of ranks that
// exist.
std::vector<std::string> apply_speeds(const SpeedReports& reports, Topology& topology);

}  // namespace trireme
