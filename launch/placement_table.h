// SPDX-License-Identifier: Apache-2.0
// A placement as a table for people.
#pragma once

#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

// Replica, stage, rank, host, layers, heads, bytes.
std::string placement_table(const Topology& topology, const ModelSpec& model,
                            const Placement& placement);

// What a stage has: "embedding 0-13 head", "embedding", "14-27".
std::string stage_content(const StageSpec& stage);

}  // namespace trireme
