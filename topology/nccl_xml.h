// SPDX-License-Identifier: Apache-2.0
// NCCL's topology files (NCCL_TOPO_FILE, NCCL_TOPO_DUMP_FILE), RCCL's version 2 among them.
#pragma once

#include <string>
#include <vector>

#include "topology/machine.h"
#include "topology/xml.h"

namespace trireme {

// One machine for each host in it, completed; `name` is theirs, with a number where there are
// several. Throws kInvalidArgument naming `source`, the line and what is wrong: duplicate ids,
// speeds that no link has, more NVLinks than any GPU has. What can be used and is odd becomes a
// note.
std::vector<Machine> read_nccl_xml(const XmlElement& root, const std::string& source,
                                   const std::string& name);

// The machine as NCCL reads it; with `extras` everything that is known of it too, in attributes
// that NCCL passes over, so that what is read again is the same machine.
std::string write_nccl_xml(const Machine& machine, bool extras = false);

}  // namespace trireme
