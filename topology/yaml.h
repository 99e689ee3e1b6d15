// SPDX-License-Identifier: Apache-2.0
// A YAML file as a tree, for fabric files and NVML profiles. libyaml does the parsing, event by
// event, so that depth and size are limited before anything is built. Aliases are refused: a bomb
// is made of them.
#pragma once

#include <string>
#include <vector>

namespace trireme {

struct YamlNode {
  enum class Kind { kScalar, kSequence, kMapping };
  Kind kind = Kind::kScalar;
  int line = 0;
  std::string scalar;
  struct Entry;
  std::vector<YamlNode> items;  // of a sequence
  std::vector<Entry> entries;   // of a mapping, each key once

  const YamlNode* find(const std::string& key) const;  // nullptr: not there, or no mapping
  // The node at "a.b.c"; nullptr: not there.
  const YamlNode* at(const std::string& path) const;
};

struct YamlNode::Entry {
  std::string key;
  YamlNode value;
};

// The one document. Throws kInvalidArgument naming `source` and the line. At most 32 levels and
// 200,000 nodes.
YamlNode parse_yaml(const std::string& text, const std::string& source);

}  // namespace trireme
