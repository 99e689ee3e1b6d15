// SPDX-License-Identifier: Apache-2.0
// An XML file as a tree, for the readers of NCCL's and hwloc's topologies. Expat does the parsing:
// it works piece by piece, so that depth and size are limited before anything is built, and knows
// the line. Entities cannot be declared, nothing outside the text is read.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace trireme {

struct XmlElement {
  std::string name;
  int line = 0;
  std::vector<std::pair<std::string, std::string>> attributes;
  std::string text;  // of the element itself, its children's left out
  std::vector<XmlElement> children;

  const std::string* find(const std::string& attribute) const;  // nullptr: not there
};

// Throws kInvalidArgument naming `source` and the line. At most 64 levels and 200,000 elements.
XmlElement parse_xml(const std::string& text, const std::string& source);

// "<a b="&quot;"/>": `text` as it stands in an attribute.
std::string xml_escape(const std::string& text);

}  // namespace trireme
