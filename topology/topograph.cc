// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <set>

#include "kernels/base/error.h"
#include "topology/fabric.h"
#include "topology/machine_text.h"

namespace trireme {
namespace {

class TopographReader {
 public:
  explicit TopographReader(const std::string& source) : source_(source) {}

  std::vector<Machine> read(const YamlNode& root) {
    if (const YamlNode* const switches = root.find("switches")) read_switches(*switches);
    check_cycles();
    const YamlNode* const blocks = root.find("blocks");
    if (blocks == nullptr || blocks->items.empty()) refuse(root, "no blocks of nodes");
    for (const YamlNode& block : blocks->items) read_block(block);
    return std::move(machines_);
  }

 private:
  [[noreturn]] void refuse(const YamlNode& node, const std::string& what) const {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(node.line) + ": " + what);
  }

  std::string name(const YamlNode& node) const {
    if (node.kind != YamlNode::Kind::kScalar || node.scalar.empty() || node.scalar.size() > 128) {
      refuse(node,
             "found \"" + node.scalar.substr(0, 60) + "\", needed is a name of at most 128 bytes");
    }
    return node.scalar;
  }

  void read_switches(const YamlNode& switches) {
    for (const auto& [parent, node] : switches.entries) {
      known_.insert(parent);
      const YamlNode* const children = node.find("switches");
      if (children == nullptr) continue;
      for (const YamlNode& child : children->items) {
        const std::string below = name(child);
        known_.insert(below);
        if (!parent_.emplace(below, parent).second) {
          refuse(child,
                 "the switch " + below + " is below " + parent + " and below " + parent_[below]);
        }
        line_of_[below] = child.line;
      }
    }
  }

  void check_cycles() const {
    std::set<std::string> sound;
    for (const auto& [start, parent] : parent_) {
      std::set<std::string> way;
      for (std::string at = start; sound.count(at) == 0;) {
        if (!way.insert(at).second) {
          YamlNode place;
          place.line = line_of_.at(start);
          refuse(place, "the switch " + start + " is in a cycle: it hangs below itself");
        }
        const auto up = parent_.find(at);
        if (up == parent_.end()) break;
        at = up->second;
      }
      sound.insert(way.begin(), way.end());
    }
  }

  void read_block(const YamlNode& block) {
    const YamlNode* const leaf = block.find("switch");
    const YamlNode* const nodes = block.find("nodes");
    if (leaf == nullptr || nodes == nullptr) refuse(block, "a block without switch or nodes");
    const std::string group = name(*leaf);
    std::string domain;
    if (const YamlNode* const annotations = block.find("annotations")) {
      for (const auto& [key, value] : annotations->entries) {
        if (key.starts_with("accelerator.")) domain = name(value);
      }
    }
    for (const YamlNode& list : nodes->items) {
      const auto hosts = expand_hosts(name(list), kMaxHosts - machines_.size());
      if (hosts.empty())
        refuse(list, "\"" + list.scalar + "\" is no list such as node[1-18], or too long");
      for (const std::string& host : hosts) {
        if (!hosts_.insert(host).second)
          refuse(list, "the node " + host + " is there a second time");
        Machine& machine = machines_.emplace_back();
        machine.host = host;
        machine.group = group;
        machine.source = source_;
        machine.nvlink_domain = domain;
        if (known_.count(group) == 0) {
          machine.notes.push_back("the switch " + group + " is in no tree of switches");
        }
      }
    }
  }

  const std::string source_;
  std::set<std::string> known_, hosts_;
  std::map<std::string, std::string> parent_;
  std::map<std::string, int> line_of_;
  std::vector<Machine> machines_;
};

}  // namespace

std::vector<Machine> read_topograph(const YamlNode& root, const std::string& source) {
  return TopographReader(source).read(root);
}

std::vector<std::string> expand_hosts(const std::string& text, size_t most) {
  const size_t open = text.find('['), close = text.find(']');
  if (most == 0) return {};
  if (open == text.npos && close == text.npos) return {text};
  if (open == text.npos || close == text.npos || close < open || close + 1 != text.size())
    return {};
  const std::string prefix = text.substr(0, open);
  std::vector<std::string> hosts;
  for (const std::string_view range :
       split_fields(std::string_view(text).substr(open + 1, close - open - 1), ',')) {
    const size_t dash = range.find('-');
    const std::string_view first_text = range.substr(0, dash);
    const auto first = read_integer(first_text);
    const auto last = dash == range.npos ? first : read_integer(range.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first) return {};
    if (static_cast<uint64_t>(*last - *first) >= most - hosts.size()) return {};
    for (int64_t number = *first; number <= *last; ++number) {
      std::string digits = std::to_string(number);
      if (digits.size() < first_text.size())
        digits.insert(0, first_text.size() - digits.size(), '0');
      hosts.push_back(prefix + digits);
    }
  }
  return hosts;
}

}  // namespace trireme
