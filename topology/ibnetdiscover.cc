// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <set>

#include "kernels/base/error.h"
#include "topology/fabric.h"
#include "topology/machine_text.h"

namespace trireme {
namespace {

// The text between the quotes that begin at or after `from`; moves `from` behind them.
std::string quoted(std::string_view line, size_t& from) {
  const size_t open = line.find('"', from);
  const size_t close = open == line.npos ? line.npos : line.find('"', open + 1);
  if (close == line.npos) return "";
  from = close + 1;
  return std::string(line.substr(open + 1, close - open - 1));
}

// "4xNDR": bits per second; 0: it is no such rate.
double link_rate(std::string_view text) {
  struct Lane {
    const char* name;
    double gigabits;
  };
  constexpr std::array kLanes = {Lane{"SDR", 2.5},  Lane{"DDR", 5},   Lane{"QDR", 10},
                                 Lane{"FDR10", 10}, Lane{"FDR", 14},  Lane{"EDR", 25},
                                 Lane{"HDR", 50},   Lane{"NDR", 100}, Lane{"XDR", 200}};
  const size_t times = text.find('x');
  if (times == text.npos) return 0;
  const auto width = read_integer(text.substr(0, times));
  if (!width || *width < 1 || *width > 12) return 0;
  for (const Lane& lane : kLanes) {
    if (text.substr(times + 1) == lane.name)
      return 1e9 * lane.gigabits * static_cast<double>(*width);
  }
  return 0;
}

class IbnetdiscoverReader {
 public:
  explicit IbnetdiscoverReader(const std::string& source) : source_(source) {}

  std::vector<Machine> read(std::string_view text) {
    for (const std::string_view line : split_fields(text, '\n')) {
      ++line_;
      read_line(line);
    }
    if (switches_.empty() && adapters_ == 0) refuse("no switch and no adapter until here, its end");
    if (machines_.empty()) refuse("no adapter until here, its end, that gives a host's name");
    if (nameless_ > 0) {
      machines_.front().notes.push_back(std::to_string(nameless_) + " of " +
                                        std::to_string(adapters_) +
                                        " adapters give no host's name: left out");
    }
    join_groups();
    for (Machine& machine : machines_) {
      std::sort(machine.nics.begin(), machine.nics.end(),
                [](const Nic& a, const Nic& b) { return a.name < b.name; });
    }
    return std::move(machines_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(line_) + ": " + what);
  }

  void read_line(std::string_view line) {
    const std::string_view text = trim(line);
    if (text.starts_with("Switch") || text.starts_with("Ca") || text.starts_with("Rt")) {
      begin_node(text);
    } else if (text.starts_with("[")) {
      read_port(text);
    } else if (text.empty()) {
      kind_ = 0;
    } else if (!text.starts_with("#") && text.find('=') == text.npos &&
               !text.starts_with("Chassis") && !text.starts_with("Non-Chassis")) {
      refuse("\"" + std::string(text.substr(0, 60)) + "\" is nothing that ibnetdiscover prints");
    }
  }

  // Switch	65 "S-2c5e"		# "MF0;LEAF-1:MQM9701/U1" enhanced port 0 …
  void begin_node(std::string_view text) {
    kind_ = text[0];
    size_t at = 0;
    guid_ = quoted(text, at);
    if (guid_.size() < 3 || guid_.size() > 64) refuse("a node without its name in quotes");
    if (!nodes_.insert(guid_).second) refuse("the node " + guid_ + " is there a second time");
    const std::string description = quoted(text, at);
    if (description.size() > 128) refuse("a description of more than 128 bytes");
    if (kind_ == 'S') {
      switches_[guid_] = switch_name(description);
      return;
    }
    ++adapters_;
    host_ = nic_ = "";
    const size_t space = description.find(' ');
    const std::string second = space == description.npos ? "" : description.substr(space + 1);
    if (second.find(' ') == second.npos &&
        (second.starts_with("mlx") || second.starts_with("HCA-") || second.starts_with("hfi") ||
         second.starts_with("ib"))) {
      host_ = description.substr(0, space);
      nic_ = second;
    } else {
      ++nameless_;
    }
  }

  // "MF0;A09-P1-IBLEAF-04-04:MQM9701/U1" -> "A09-P1-IBLEAF-04-04"
  static std::string switch_name(const std::string& description) {
    const size_t begin = description.find(';');
    const size_t end = description.find(':');
    if (begin == description.npos || end == description.npos || end < begin) return description;
    return description.substr(begin + 1, end - begin - 1);
  }

  // Of an adapter: [1](guid) 	"S-2c5e"[17]		# lid 657 lmc 0 "MF0;LEAF…" lid 73 4xNDR
  void read_port(std::string_view text) {
    if (kind_ == 0) refuse("a port outside of a node");
    const auto port = read_integer(text.substr(1, text.find(']') - 1));
    if (!port || *port < 0 || *port > 255) refuse("a port that is none of 0 to 255");
    if (kind_ != 'C' || host_.empty()) return;
    size_t at = 0;
    const std::string peer = quoted(text, at);
    const double rate = link_rate(text.substr(text.find_last_of(" \t") + 1));
    if (peer.empty()) refuse("a port without its peer in quotes");
    if (rate == 0) refuse("a port without a rate such as 4xNDR at its end");
    Machine& machine = machine_of(host_);
    if (machine.nics.size() >= kMaxNics) refuse("too many ports of one host before it");
    Nic nic;
    nic.name = nic_;
    nic.port = static_cast<int32_t>(*port);
    nic.bits_per_s = rate;
    nic.state = Nic::State::kActive;
    nic.link_layer = "InfiniBand";
    nic.guid = guid_.substr(2);
    nic.fabric_switch = peer;
    machine.nics.push_back(nic);
  }

  Machine& machine_of(const std::string& host) {
    const auto [at, added] = index_of_.emplace(host, machines_.size());
    if (added) {
      if (machines_.size() >= kMaxHosts) refuse("too many hosts before it");
      machines_.emplace_back();
      machines_.back().host = host;
      machines_.back().source = source_;
    }
    return machines_[at->second];
  }

  // Union of hosts by the leaves that they share; then the switches get their names.
  void join_groups() {
    std::vector<size_t> root(machines_.size());
    std::iota(root.begin(), root.end(), size_t{0});
    const auto find = [&](size_t i) {
      while (root[i] != i) i = root[i] = root[root[i]];
      return i;
    };
    std::map<std::string, size_t> first_of;
    for (size_t i = 0; i < machines_.size(); ++i) {
      for (const Nic& nic : machines_[i].nics) {
        const auto [at, added] = first_of.emplace(nic.fabric_switch, i);
        if (!added) root[find(i)] = find(at->second);
      }
    }
    std::map<size_t, std::string> name_of;
    for (size_t i = 0; i < machines_.size(); ++i) {
      for (Nic& nic : machines_[i].nics) {
        const auto known = switches_.find(nic.fabric_switch);
        if (known != switches_.end()) nic.fabric_switch = known->second;
        std::string& name = name_of[find(i)];
        if (name.empty() || nic.fabric_switch < name) name = nic.fabric_switch;
      }
    }
    for (size_t i = 0; i < machines_.size(); ++i) machines_[i].group = name_of[find(i)];
  }

  const std::string source_;
  int line_ = 0;
  char kind_ = 0;  // of the node whose ports follow: S, C or R
  std::string guid_, host_, nic_;
  std::set<std::string> nodes_;
  std::map<std::string, std::string> switches_;  // guid -> name
  std::map<std::string, size_t> index_of_;
  std::vector<Machine> machines_;
  int adapters_ = 0, nameless_ = 0;
};

}  // namespace

std::vector<Machine> read_ibnetdiscover(const std::string& text, const std::string& source) {
  return IbnetdiscoverReader(source).read(text);
}

}  // namespace trireme
