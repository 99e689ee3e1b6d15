// SPDX-License-Identifier: Apache-2.0
// A placement as a picture: what is predicted, the pipelines with their times and hops, and the
// nodes with what each device holds. Nodes and replicas that are alike are drawn once.
#pragma once

#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

std::string draw_placement(const Topology& topology, const ModelSpec& model,
                           const Placement& placement);

}  // namespace trireme
