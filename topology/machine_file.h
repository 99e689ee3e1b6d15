// SPDX-License-Identifier: Apache-2.0
// Machines from files that other tools wrote; the kind of a file is told by its content.
#pragma once

#include <string>
#include <vector>

#include "topology/machine.h"

namespace trireme {

// NCCL's or RCCL's topology XML, hwloc's XML, what ibnetdiscover prints, topograph's YAML, a
// profile of nvml-mock, go-gpuallocator's table. `source` names it in errors; machines without a
// name of their own are called `name`. Throws kInvalidArgument naming the line and what is wrong.
std::vector<Machine> read_machines(const std::string& text, const std::string& source,
                                   const std::string& name);

}  // namespace trireme
