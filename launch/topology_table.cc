// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <tuple>

#include "launch/probe.h"
#include "launch/speeds.h"
#include "launch/text_table.h"
#include "topology/machine_text.h"
#include "topology/topology.h"

namespace trireme {
namespace {

using Rows = std::vector<std::vector<std::string>>;

constexpr size_t kMostRows = 48;

std::string limited(Rows rows, const char* what) {
  const size_t count = rows.size() - 1;
  std::string text;
  if (count == 0) return text;
  if (count > kMostRows) rows.resize(kMostRows + 1);
  text = draw_table(rows);
  if (count > kMostRows) {
    text +=
        "  and " + std::to_string(count - kMostRows) + " " + what + " more; --json has them all\n";
  }
  return text;
}

std::string gigabytes(double bytes_per_s) { return three_figures(bytes_per_s / 1e9); }

std::string class_text(const LinkSpeed& speed) {
  if (speed.link_class() == LINK_CLASS_NVL) return "NV" + std::to_string(speed.nvlinks());
  return LinkClass_Name(speed.link_class()).substr(sizeof "LINK_CLASS_" - 1);
}

std::string device_name(const DeviceInfo& device) {
  if (device.kind() != DEVICE_KIND_CPU) return device.name();
  return device.isa() + " x" + std::to_string(device.threads()) + " " + device.name();
}

std::string list_text(const std::vector<int32_t>& numbers) { return write_core_list(numbers); }

std::string rank_table(const Topology& topology) {
  std::map<int32_t, std::string> island_of;
  for (int i = 0; i < topology.islands_size(); ++i) {
    for (const int32_t rank : topology.islands(i).ranks()) island_of[rank] = std::to_string(i);
  }
  Rows rows = {{"rank", "host", "device", "memory", "NUMA", "rail", "island", "degraded"}};
  for (const RankInfo& rank : topology.ranks()) {
    const DeviceInfo& device = rank.device();
    const auto island = island_of.find(rank.rank());
    rows.push_back(
        {std::to_string(rank.rank()), rank.host().substr(0, 20), device_name(device).substr(0, 28),
         device.memory_bytes() == 0 ? "?" : format_bytes(device.memory_bytes()),
         device.has_numa_node() ? std::to_string(device.numa_node()) : "?",
         device.has_rail() ? std::to_string(device.rail()) : "-",
         island == island_of.end() ? "-" : island->second, device.degraded() ? "yes" : ""});
  }
  return limited(rows, "devices");
}

std::string island_table(const Topology& topology) {
  Rows rows = {{"island", "ranks", "class", "GB/s", "all-reduce"}};
  for (int i = 0; i < topology.islands_size(); ++i) {
    const Island& island = topology.islands(i);
    std::vector<int32_t> ranks(island.ranks().begin(), island.ranks().end());
    rows.push_back({std::to_string(i), list_text(ranks).substr(0, 48), class_text(island.link()),
                    gigabytes(island.link().bandwidth_bytes_per_s()), island.all_reduce_table()});
  }
  return limited(rows, "islands");
}

std::string network_table(const Topology& topology) {
  Rows rows = {{"from", "to", "GB/s", "us", "measured"}};
  for (const NetworkLink& link : topology.network()) {
    rows.push_back({link.a().empty() ? "any node" : link.a(),
                    link.b().empty() ? "any node" : link.b(),
                    gigabytes(link.speed().bandwidth_bytes_per_s()),
                    three_figures(1e6 * link.speed().latency_s()),
                    link.speed().measured() ? "yes" : "nominal"});
  }
  return limited(rows, "links");
}

// Groups of nodes where there are several, with their NICs.
std::string node_table(const Topology& topology) {
  struct Group {
    std::vector<std::string> hosts;
    int nics = 0;
    double rate = 0;
  };
  std::map<std::string, Group> groups;
  for (const NodeInfo& node : topology.nodes()) {
    Group& group = groups[node.group()];
    group.hosts.push_back(node.host());
    group.nics += node.nics_size();
    for (const NicInfo& nic : node.nics())
      group.rate = std::max(group.rate, 8 * nic.rate_bytes_per_s());
  }
  if (topology.nodes_size() < 2) return "";
  Rows rows = {{"group", "nodes", "NICs", "fastest, Gb/s", "hosts"}};
  for (const auto& [name, group] : groups) {
    std::string hosts = group.hosts.front().substr(0, 20);
    if (group.hosts.size() > 1) {
      hosts += (group.hosts.size() > 2 ? " .. " : " ") + group.hosts.back().substr(0, 20);
    }
    rows.push_back({name.empty() ? "-" : name.substr(0, 24), std::to_string(group.hosts.size()),
                    std::to_string(group.nics),
                    group.rate > 0 ? format_number("%g", group.rate / 1e9) : "?", hosts});
  }
  return limited(rows, "groups");
}

std::string spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  if (values.front() == values.back()) return three_figures(values.front());
  return three_figures(values.front()) + " / " + three_figures(values[values.size() / 2]) + " / " +
         three_figures(values.back());
}

// Pairs of ranks whose links are known one by one: least, median, greatest.
std::string pair_table(const Topology& topology) {
  struct Group {
    std::vector<double> latency, bandwidth;
  };
  std::map<int32_t, std::string> host_of;
  for (const RankInfo& rank : topology.ranks()) host_of[rank.rank()] = rank.host();
  std::map<std::tuple<bool, std::string, bool>, Group> groups;
  for (const Link& link : topology.links()) {
    const LinkSpeed& speed = link.speed();
    Group& group = groups[{host_of[link.rank_a()] != host_of[link.rank_b()], class_text(speed),
                           speed.measured()}];
    group.latency.push_back(1e6 * speed.latency_s());
    group.bandwidth.push_back(speed.bandwidth_bytes_per_s() / 1e9);
  }
  Rows rows = {{"links", "class", "pairs", "latency us", "GB/s", "measured"}};
  for (const auto& [key, group] : groups) {
    const auto& [between, name, measured] = key;
    rows.push_back({between ? "between nodes" : "inside a node", name,
                    std::to_string(group.latency.size()), spread(group.latency),
                    spread(group.bandwidth), measured ? "yes" : "nominal"});
  }
  return limited(rows, "kinds");
}

// What is far under what it should be, in words.
std::string degraded_text(const Topology& topology) {
  constexpr size_t kMostLines = 16, kMostBytes = 96;
  std::vector<std::string> lines;
  for (const RankInfo& rank : topology.ranks()) {
    if (!rank.device().degraded()) continue;
    lines.push_back("rank " + std::to_string(rank.rank()) + " on " + rank.host() + ": " +
                    rank.device().degraded_reason());
  }
  for (const Link& link : topology.links()) {
    if (!link.speed().degraded()) continue;
    lines.push_back("link " + std::to_string(link.rank_a()) + " - " +
                    std::to_string(link.rank_b()) + ": " + link.speed().degraded_reason());
  }
  std::string text;
  for (size_t i = 0; i < std::min(lines.size(), kMostLines); ++i) {
    for (size_t at = 0; at < lines[i].size(); at += kMostBytes) {
      text += (at == 0 ? "  " : "    ") + lines[i].substr(at, kMostBytes) + "\n";
    }
  }
  if (lines.size() > kMostLines) {
    text += "  and " + std::to_string(lines.size() - kMostLines) + " more; --json has them all\n";
  }
  return text;
}

}  // namespace

std::string topology_tables(const Topology& topology) {
  std::string text = std::to_string(topology.nodes_size()) +
                     (topology.nodes_size() == 1 ? " node, " : " nodes, ") +
                     std::to_string(topology.ranks_size()) +
                     (topology.ranks_size() == 1 ? " device\n" : " devices\n");
  const auto section = [&](const char* heading, const std::string& body) {
    if (!body.empty()) text += "\n" + std::string(heading) + "\n" + body;
  };
  section("Nodes", node_table(topology));
  section("Devices as ranks", rank_table(topology));
  section("Islands: where tensor parallelism may live", island_table(topology));
  section("Links of pairs", pair_table(topology));
  section("Network between nodes", network_table(topology));
  section("Speeds, measured", speed_table(topology));
  section("Degraded", degraded_text(topology));
  return text;
}

}  // namespace trireme
