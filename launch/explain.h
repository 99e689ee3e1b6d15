// SPDX-License-Identifier: Apache-2.0
// Why a placement is as it is, for people: each rank's memory and time, what is predicted, and the
// reasons in sentences with their numbers.
#pragma once

#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

std::string explain_placement(const Topology& topology, const ModelSpec& model,
                              const Placement& placement);

}  // namespace trireme
