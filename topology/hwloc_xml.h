// SPDX-License-Identifier: Apache-2.0
// hwloc's XML (`lstopo machine.xml`), format versions 2 and 3. Read by our own XML reader: libhwloc
// 2.9, the distribution's, refuses version 3 and does not claim to take files of strangers.
#pragma once

#include <string>

#include "topology/machine.h"
#include "topology/xml.h"

namespace trireme {

// The machine, completed; its name is the file's HostName or `name`. Throws kInvalidArgument naming
// `source`, the line and what is wrong.
Machine read_hwloc_xml(const XmlElement& root, const std::string& source, const std::string& name);

}  // namespace trireme
