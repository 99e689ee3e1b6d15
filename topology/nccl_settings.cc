// SPDX-License-Identifier: Apache-2.0
#include "topology/nccl_settings.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "topology/machine_text.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr size_t kMostPorts = 32;  // that NCCL reads of a list
constexpr size_t kMostNameBytes = 63;
constexpr size_t kShownPorts = 6;  // that were left out

// What is not could mean something else in a list of NCCL's.
bool is_name(const std::string& name) {
  return !name.empty() && name.size() <= kMostNameBytes &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.';
         });
}

std::string rate_text(double bytes_per_s) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g Gb/s", bytes_per_s * 8e-9);
  return text;
}

const NodeInfo* find_node(const Topology& topology, const std::string& host) {
  for (const NodeInfo& node : topology.nodes()) {
    if (node.host() == host) return &node;
  }
  return nullptr;
}

const RankInfo& info_of(const Topology& topology, int rank) {
  const auto& ranks = topology.ranks();
  return *std::find_if(ranks.begin(), ranks.end(),
                       [&](const RankInfo& info) { return info.rank() == rank; });
}

std::set<std::string> hosts_of(const Topology& topology, const std::set<int>& ranks) {
  std::set<std::string> hosts;
  for (const RankInfo& info : topology.ranks()) {
    if (ranks.contains(info.rank())) hosts.insert(info.host());
  }
  return hosts;
}

bool is_set(const NcclVariables& environment, const char* name) {
  const auto found = environment.find(name);
  return found != environment.end() && !found->second.empty();
}

// ---- the interface ----

struct Interface {
  std::string name;
  double bytes_per_s = 0;  // 0: not known
};

double rate_of(const NodeInfo* node, const std::string& interface) {
  if (node == nullptr) return 0;
  for (const NicInfo& nic : node->nics()) {
    if (nic.name() == interface && nic.port() == 0) return nic.rate_bytes_per_s();
  }
  return 0;
}

// Loopback, and bridges to what runs on the same host.
bool stays_inside(const std::string& interface) {
  constexpr std::array kInside = {"lo", "docker", "veth", "virbr", "vnet", "cni", "cali"};
  return std::any_of(kInside.begin(), kInside.end(),
                     [&](const char* prefix) { return interface.starts_with(prefix); });
}

// By which a rank reaches rank 0.
Interface control_interface(const Topology& topology, const RankInfo& info, bool one_host) {
  const std::string& name = info.interface();
  if (!is_name(name) || (stays_inside(name) && !one_host)) return {};
  return {name, rate_of(find_node(topology, info.host()), name)};
}

// That all of MPI's connections from a rank to other hosts are seen to leave by.
Interface data_interface(const Topology& topology, const std::set<int>& ranks, int rank) {
  Interface found;
  for (const Link& link : topology.links()) {
    const bool first = link.rank_a() == rank;
    const int peer = first ? link.rank_b() : link.rank_a();
    if ((!first && link.rank_b() != rank) || !ranks.contains(peer)) continue;
    const std::string& name = first ? link.interface_a() : link.interface_b();
    if (name.empty()) continue;  // of the same host, or not seen
    if (!is_name(name) || stays_inside(name) || (!found.name.empty() && found.name != name))
      return {};
    found = {name, link.speed().nominal_bandwidth_bytes_per_s()};
  }
  return found;
}

struct Ways {
  Interface control, data;
};

// The way of MPI's data where all ranks have one and it is faster than that to rank 0 on the rank
// where it is slowest, or where the other is not known.
bool takes_data(const std::map<int, Ways>& ways) {
  constexpr double kFaster = 1.5;
  bool control_known = true;
  double control = 1e30, data = 1e30;
  for (const auto& [rank, way] : ways) {
    if (way.data.name.empty()) return false;
    control_known = control_known && !way.control.name.empty();
    control = std::min(control, way.control.bytes_per_s);
    data = std::min(data, way.data.bytes_per_s);
  }
  return !control_known || (control > 0 && data > kFaster * control);
}

std::optional<NcclVariable> choose_interface(const Topology& topology, const std::set<int>& ranks,
                                             int rank, bool one_host) {
  std::map<int, Ways> ways;
  for (const int one : ranks) {
    ways[one] = {control_interface(topology, info_of(topology, one), one_host),
                 data_interface(topology, ranks, one)};
  }
  const Ways& own = ways.at(rank);
  const bool data = takes_data(ways);
  const Interface& way = data ? own.data : own.control;
  if (way.name.empty()) return std::nullopt;
  const std::string rate = way.bytes_per_s > 0 ? " (" + rate_text(way.bytes_per_s) + ")" : "";
  std::string reason = "rank 0 is reached by it" + rate;
  if (way.name == "lo") reason = "all ranks are on one host";
  if (data) {
    reason = "MPI's connections between the hosts take it" + rate;
    if (!own.control.name.empty() && own.control.name != way.name) {
      reason += ", and it is faster than " + own.control.name + ", by which rank 0 is reached";
    }
  }
  return NcclVariable{"NCCL_SOCKET_IFNAME", "=" + way.name, reason};
}

// ---- the ports ----

struct Ports {
  std::vector<const NicInfo*> used;
  std::vector<std::string> left_out;  // "mlx5_2:1 (down)"
  bool beside_gpus = false;
};

// As NCCL names it.
std::string port_name(const NicInfo& nic) { return nic.name() + ":" + std::to_string(nic.port()); }

// Cards with ports to name: InfiniBand's and RoCE's. A plain interface has none.
bool has_ports(const NicInfo& nic) { return nic.port() > 0 && is_name(nic.name()); }

// The node's ports of this link layer that are not down: those beside its GPUs where there are
// rails, and of them the fast ones.
Ports find_ports(const NodeInfo* node, const std::string& layer) {
  Ports ports;
  if (node == nullptr) return ports;
  const auto leave_out = [&](const NicInfo& nic, const std::string& why) {
    ports.left_out.push_back(port_name(nic) + " (" + why + ")");
  };
  for (const NicInfo& nic : node->nics()) {
    if (!has_ports(nic)) continue;
    if (nic.state() == NIC_STATE_DOWN) {
      leave_out(nic, "down");
    } else if (nic.link_layer() != layer) {
      leave_out(nic,
                nic.link_layer().empty() ? "of no known link layer" : printable(nic.link_layer()));
    } else {
      ports.used.push_back(&nic);
    }
  }
  const auto keep = [&](auto wanted, const auto& why) {
    std::vector<const NicInfo*> kept;
    for (const NicInfo* const nic : ports.used) {
      if (wanted(*nic)) {
        kept.push_back(nic);
      } else {
        leave_out(*nic, why(*nic));
      }
    }
    ports.used = std::move(kept);
  };
  const auto on_rail = [](const NicInfo& nic) { return nic.has_rail(); };
  ports.beside_gpus = std::any_of(ports.used.begin(), ports.used.end(),
                                  [&](const NicInfo* nic) { return on_rail(*nic); });
  if (ports.beside_gpus) {
    keep(on_rail, [](const NicInfo&) { return "beside no GPU"; });
  }
  double best = 0;
  for (const NicInfo* const nic : ports.used) best = std::max(best, nic->rate_bytes_per_s());
  keep([&](const NicInfo& nic) { return 2 * nic.rate_bytes_per_s() >= best; },
       [](const NicInfo& nic) { return rate_text(nic.rate_bytes_per_s()); });
  return ports;
}

std::string ports_reason(const Ports& ports, const std::string& layer) {
  double least = 1e30, most = 0;
  for (const NicInfo* const nic : ports.used) {
    least = std::min(least, nic->rate_bytes_per_s());
    most = std::max(most, nic->rate_bytes_per_s());
  }
  std::string reason = ports.used.size() == 1 ? "it is the port of " : "they are the ports of ";
  reason += (layer == "Ethernet" ? "RoCE" : layer) + " that " +
            (ports.used.size() == 1 ? "is" : "are") + " up";
  if (ports.beside_gpus) reason += " beside its GPUs";
  if (most > 0) {
    reason += " (" + (least < most ? rate_text(least) + " to " : "") + rate_text(most) + ")";
  }
  for (size_t i = 0; i < std::min(ports.left_out.size(), kShownPorts); ++i) {
    reason += (i == 0 ? ", without " : ", ") + ports.left_out[i];
  }
  if (ports.left_out.size() > kShownPorts) {
    reason += " and " + std::to_string(ports.left_out.size() - kShownPorts) + " more";
  }
  return reason;
}

// The link layer that every host has a port of; the first host that has none of it, else.
struct CommonLayer {
  std::string layer;
  std::string lacking;
  bool anywhere = false;  // some host has ports
};

CommonLayer find_layer(const Topology& topology, const std::set<std::string>& hosts) {
  CommonLayer common;
  for (const char* const layer : {"InfiniBand", "Ethernet"}) {
    std::string lacking;
    for (const std::string& host : hosts) {
      const bool has = !find_ports(find_node(topology, host), layer).used.empty();
      common.anywhere = common.anywhere || has;
      if (!has && lacking.empty()) lacking = host;
    }
    if (lacking.empty()) {
      common.layer = layer;
      return common;
    }
    if (common.lacking.empty()) common.lacking = lacking;
  }
  return common;
}

std::optional<NcclVariable> choose_ports(const Topology& topology,
                                         const std::set<std::string>& hosts,
                                         const std::string& host) {
  const CommonLayer common = find_layer(topology, hosts);
  if (common.layer.empty()) {
    // One host's NCCL would try what another has not, and fail or wait for ever.
    if (!common.anywhere) return std::nullopt;
    return NcclVariable{"NCCL_IB_DISABLE", "1",
                        "no link layer of InfiniBand or RoCE is up on all hosts: not on " +
                            common.lacking + ", so all use sockets"};
  }
  const Ports ports = find_ports(find_node(topology, host), common.layer);
  if (ports.used.size() > kMostPorts) return std::nullopt;
  std::string list;
  for (const NicInfo* const nic : ports.used) {
    list += (list.empty() ? "=" : ",") + port_name(*nic);
  }
  return NcclVariable{"NCCL_IB_HCA", list, ports_reason(ports, common.layer)};
}

std::string line_of(const NcclSettings& settings) {
  std::string text;
  for (const NcclVariable& one : settings.chosen) {
    text += (text.empty() ? "" : "; ") + one.name + "=\"" + one.value + "\" because " + one.reason;
  }
  for (size_t i = 0; i < settings.by_user.size(); ++i) {
    text += i > 0 ? ", " : text.empty() ? "set by you: " : "; set by you: ";
    text += settings.by_user[i].name + "=\"" + settings.by_user[i].value + "\"";
  }
  return text.empty() ? "it chooses its ways by itself: nothing is known of them" : text;
}

}  // namespace

bool has_nccl(const RankInfo& rank) {
  return rank.device().kind() == DEVICE_KIND_CUDA && rank.nccl_version() > 0;
}

NcclSettings choose_nccl_settings(const Topology& topology, const std::set<int>& ranks, int rank,
                                  const NcclVariables& environment) {
  NcclSettings settings;
  for (const char* const name : kNcclVariables) {
    if (is_set(environment, name)) {
      settings.by_user.push_back({name, printable(environment.at(name)), ""});
    }
  }
  const std::set<std::string> hosts = hosts_of(topology, ranks);
  const bool one_host = hosts.size() == 1;
  if (!is_set(environment, "NCCL_SOCKET_IFNAME")) {
    if (auto chosen = choose_interface(topology, ranks, rank, one_host)) {
      settings.chosen.push_back(*chosen);
    }
  }
  bool theirs = false;
  for (const char* const name : {"NCCL_IB_HCA", "NCCL_IB_DISABLE", "NCCL_NET", "NCCL_NET_PLUGIN"}) {
    theirs = theirs || is_set(environment, name);
  }
  if (one_host || theirs) return settings;
  if (auto chosen = choose_ports(topology, hosts, info_of(topology, rank).host())) {
    settings.chosen.push_back(*chosen);
  }
  return settings;
}

std::vector<std::string> describe_nccl_settings(const Topology& topology,
                                                const std::map<int, NcclSettings>& settings) {
  constexpr size_t kShownLines = 8, kShownHosts = 4;
  struct Group {
    std::string text, ranks;
    int count = 0;
    std::vector<std::string> hosts;
  };
  std::vector<Group> groups;
  for (const auto& [rank, one] : settings) {
    const std::string text = line_of(one);
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const Group& other) { return other.text == text; });
    if (group == groups.end()) group = groups.insert(groups.end(), {text, "", 0, {}});
    group->ranks += " " + std::to_string(rank);
    ++group->count;
    const std::string& host = info_of(topology, rank).host();
    if (group->hosts.empty() || group->hosts.back() != host) group->hosts.push_back(host);
  }
  std::vector<std::string> lines;
  for (const Group& group : groups) {
    if (lines.size() == kShownLines) {
      lines.push_back("NCCL: " + std::to_string(groups.size() - kShownLines) +
                      " more hosts have ways of their own");
      break;
    }
    std::string hosts;
    for (size_t i = 0; i < std::min(group.hosts.size(), kShownHosts); ++i) {
      hosts += (i == 0 ? "" : ", ") + printable(group.hosts[i]);
    }
    if (group.hosts.size() > kShownHosts) {
      hosts += " and " + std::to_string(group.hosts.size() - kShownHosts) + " more";
    }
    lines.push_back((group.count == 1 ? "NCCL: rank" : "NCCL: ranks") + group.ranks + " on " +
                    hosts + ": " + group.text);
  }
  return lines;
}

NcclVariables variables_of(const NcclSettings& settings) {
  NcclVariables variables;
  for (const NcclVariable& one : settings.chosen) variables[one.name] = one.value;
  return variables;
}

void set_nccl_variables(const NcclVariables& chosen) {
  constexpr size_t kMostBytes = 4096;
  for (const auto& [name, value] : chosen) {
    const bool known =
        std::find(kNcclVariables.begin(), kNcclVariables.end(), name) != kNcclVariables.end();
    if (!known || value.empty() || value.size() > kMostBytes || printable(value) != value) {
      throw Error(Code::kInvalidArgument, "cannot set " + printable(name).substr(0, 64) +
                                              " for NCCL: it is no variable and value that the "
                                              "coordinator may choose");
    }
    setenv(name.c_str(), value.c_str(), 0);
  }
  for (const auto& [name, value] : kNcclForRecordings) setenv(name, value, 0);
}

}  // namespace trireme
