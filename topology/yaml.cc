// SPDX-License-Identifier: Apache-2.0
#include "topology/yaml.h"

#include <yaml.h>

#include <set>
#include <utility>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxNodes = 200'000;

class YamlReader {
 public:
  YamlReader(const std::string& text, const std::string& source) : source_(source) {
    if (yaml_parser_initialize(&parser_) == 0) {
      throw Error(Code::kResourceExhausted, "no memory for a YAML parser");
    }
    yaml_parser_set_input_string(&parser_, reinterpret_cast<const unsigned char*>(text.data()),
                                 text.size());
  }
  ~YamlReader() {
    yaml_event_delete(&event_);
    yaml_parser_delete(&parser_);
  }
  YamlReader(const YamlReader&) = delete;
  YamlReader& operator=(const YamlReader&) = delete;

  YamlNode read() {
    next();  // the stream's start
    next();
    if (event_.type == YAML_STREAM_END_EVENT) refuse("it is empty");
    next();  // past the document's start
    YamlNode root = read_node(0);
    next();
    if (event_.type != YAML_DOCUMENT_END_EVENT) refuse("it goes on after its end");
    next();
    if (event_.type != YAML_STREAM_END_EVENT) refuse("it has a second document");
    return root;
  }

 private:
  [[noreturn]] void refuse(const std::string& reason) const {
    const size_t line =
        parser_.error == YAML_NO_ERROR ? event_.start_mark.line : parser_.problem_mark.line;
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(line + 1) + ": " + reason);
  }

  void next() {
    yaml_event_delete(&event_);
    event_ = {};
    if (yaml_parser_parse(&parser_, &event_) != 0) return;
    refuse(parser_.problem == nullptr ? "it is no YAML" : parser_.problem);
  }

  // The node that begins with the event at hand; ends with that node's last event at hand.
  YamlNode read_node(size_t depth) {
    if (depth > kMaxDepth)
      refuse("it is nested deeper than " + std::to_string(kMaxDepth) + " levels");
    if (++nodes_ > kMaxNodes) refuse("it has more than " + std::to_string(kMaxNodes) + " nodes");
    YamlNode node;
    node.line = static_cast<int>(event_.start_mark.line) + 1;
    switch (event_.type) {
      case YAML_SCALAR_EVENT: node.scalar = scalar(); return node;
      case YAML_SEQUENCE_START_EVENT:
        node.kind = YamlNode::Kind::kSequence;
        for (next(); event_.type != YAML_SEQUENCE_END_EVENT; next()) {
          node.items.push_back(read_node(depth + 1));
        }
        return node;
      case YAML_MAPPING_START_EVENT: read_mapping(node, depth); return node;
      case YAML_ALIAS_EVENT: refuse("it has an alias; write the node out");
      default: refuse("it is no YAML that this program knows");
    }
  }

  void read_mapping(YamlNode& node, size_t depth) {
    node.kind = YamlNode::Kind::kMapping;
    std::set<std::string> keys;
    for (next(); event_.type != YAML_MAPPING_END_EVENT; next()) {
      if (event_.type != YAML_SCALAR_EVENT) refuse("a key that is no plain text");
      std::string key = scalar();
      if (!keys.insert(key).second) refuse("the key \"" + key + "\" is there a second time");
      next();
      node.entries.push_back({std::move(key), read_node(depth + 1)});
    }
  }

  std::string scalar() const {
    const auto& data = event_.data.scalar;
    return {reinterpret_cast<const char*>(data.value), data.length};
  }

  const std::string source_;
  yaml_parser_t parser_ = {};
  yaml_event_t event_ = {};
  size_t nodes_ = 0;
};

}  // namespace

const YamlNode* YamlNode::find(const std::string& key) const {
  for (const auto& [name, node] : entries) {
    if (name == key) return &node;
  }
  return nullptr;
}

const YamlNode* YamlNode::at(const std::string& path) const {
  const YamlNode* node = this;
  for (size_t begin = 0; node != nullptr && begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    node = node->find(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return node;
}

YamlNode parse_yaml(const std::string& text, const std::string& source) {
  return YamlReader(text, source).read();
}

}  // namespace trireme
