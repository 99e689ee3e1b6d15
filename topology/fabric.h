// SPDX-License-Identifier: Apache-2.0
// Networks as tools describe them: hosts and the switches that they hang on, no devices.
#pragma once

#include <string>
#include <vector>

#include "topology/machine.h"
#include "topology/yaml.h"

namespace trireme {

// What `ibnetdiscover` prints: hosts with their InfiniBand ports. Hosts that share a leaf switch,
// or have a host in between that does, are one group, named after its first leaf. Throws
// kInvalidArgument naming `source`, the line and what is wrong.
std::vector<Machine> read_ibnetdiscover(const std::string& text, const std::string& source);

// A model of NVIDIA's topograph: a tree of switches, and blocks of nodes below. Throws as above:
// cycles among switches, nodes in two blocks.
std::vector<Machine> read_topograph(const YamlNode& root, const std::string& source);

// Names of "node[1101-1118,1120]". Empty: it is no such list, or has more than `most` names.
std::vector<std::string> expand_hosts(const std::string& text, size_t most);

}  // namespace trireme
