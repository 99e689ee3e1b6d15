// SPDX-License-Identifier: Apache-2.0
// What NCCL's format has no place for, as attributes that NCCL passes over: so a machine travels
// between ranks in the form that files have, and is checked by the same reader.
#pragma once

#include <string>

#include "topology/machine.h"
#include "topology/xml.h"

namespace trireme {

// " name=\"…\" temperature_c=\"91\"", and notes as children. Empty where nothing is known.
std::string extra_attributes(const Machine& machine);
std::string extra_attributes(const PciDevice& device);
std::string extra_attributes(const NumaNode& node);
std::string extra_attributes(const Gpu& gpu);
std::string extra_attributes(const Nic& nic);
std::string extra_children(const Machine& machine);
std::string extra_children(const Gpu& gpu);
std::string extra_children(const Nic& nic);

// The same back. False: an attribute is none; `objection` says which, and what it was.
bool read_extras(const XmlElement& element, Machine& machine, std::string& objection);
bool read_extras(const XmlElement& element, PciDevice& device, std::string& objection);
bool read_extras(const XmlElement& element, NumaNode& node, std::string& objection);
bool read_extras(const XmlElement& element, Gpu& gpu, std::string& objection);
bool read_extras(const XmlElement& element, Nic& nic, std::string& objection);

// Elements of extra_children().
bool is_extra(const std::string& element_name);

}  // namespace trireme
