// SPDX-License-Identifier: Apache-2.0
// `trireme plan`: the placement that serve would use here, or would use on machines that files
// describe, without a weight.
#pragma once

#include <string>

#include "launch/options.h"

namespace trireme {

int plan(const Options& options);

// What a flag asks to be written: --svg, --save_plan, --nccl_xml. Throws kInvalidArgument naming
// the flag where the file cannot be.
void write_flag_file(const std::string& path, const std::string& text, const std::string& flag);

// Whether it needs the job's other ranks.
bool plans_for_this_job(const PlanFlags& flags);

}  // namespace trireme
