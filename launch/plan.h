// SPDX-License-Identifier: Apache-2.0
// `trireme plan`: the placement that serve would use here, or would use on machines that files
// describe, without a weight.
#pragma once

#include <string>

#include "launch/options.h"
#include "proto/cluster.pb.h"

namespace trireme {

int plan(const Options& options);

// For --device_map. Throws kInvalidArgument for a file that cannot be written.
void save_placement(const std::string& path, const Placement& placement);

// Whether it needs the job's other ranks.
bool plans_for_this_job(const PlanFlags& flags);

}  // namespace trireme
