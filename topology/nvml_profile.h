// SPDX-License-Identifier: Apache-2.0
// Descriptions of machines that test tools of NVIDIA read: a profile of nvml-mock, and the tables
// of links in go-gpuallocator's source.
#pragma once

#include <string>
#include <vector>

#include "topology/machine.h"
#include "topology/yaml.h"

namespace trireme {

// A profile of nvml-mock: GPUs, NVLinks through switches, NICs, NUMA nodes. Throws kInvalidArgument
// naming `source`, the line and what is wrong.
Machine read_nvml_profile(const YamlNode& root, const std::string& source, const std::string& name);

// Every function New…Node() of Go source that calls node.AddLink(from, to, nvml.Kind).
std::vector<Machine> read_link_table(const std::string& text, const std::string& source);

}  // namespace trireme
