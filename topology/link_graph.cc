// SPDX-License-Identifier: Apache-2.0
#include "topology/link_graph.h"

#include <algorithm>
#include <set>

namespace trireme {
namespace {

LinkSpeed assume(LinkClass link_class, double latency_s, double bandwidth) {
  LinkSpeed speed;
  speed.set_link_class(link_class);
  speed.set_latency_s(latency_s);
  speed.set_bandwidth_bytes_per_s(bandwidth);
  return speed;
}

// Where nothing was measured and no file says it: memory of a node for CPU ranks, PCIe through the
// host for GPUs, 10 Gb/s Ethernet between nodes.
const LinkSpeed kMemory = assume(LINK_CLASS_NODE, 5e-6, 8e9);
const LinkSpeed kHostBridge = assume(LINK_CLASS_PHB, 12e-6, 10e9);
const LinkSpeed kEthernet = assume(LINK_CLASS_NET, 60e-6, 1.1e9);

bool given(const LinkSpeed& speed) { return speed.bandwidth_bytes_per_s() > 0; }

}  // namespace

LinkGraph::LinkGraph(const Topology& topology)
    : topology_(topology), island_of_(static_cast<size_t>(topology.ranks_size()), -1) {
  std::map<int32_t, int> workers;
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    workers[topology.ranks(worker).rank()] = worker;
  }
  for (int island = 0; island < topology.islands_size(); ++island) {
    for (const int32_t rank : topology.islands(island).ranks()) {
      island_of_[static_cast<size_t>(workers.at(rank))] = island;
    }
  }
  for (const NodeInfo& node : topology.nodes()) nodes_[node.host()] = &node;
  for (const NetworkLink& link : topology.network()) {
    network_[{link.a(), link.b()}] = network_[{link.b(), link.a()}] = &link;
  }
  for (const Link& link : topology.links()) {
    const std::pair<int, int> pair =
        std::minmax(workers.at(link.rank_a()), workers.at(link.rank_b()));
    pairs_[pair] = &link.speed();
  }
}

const LinkSpeed& LinkGraph::network(int a, int b) const {
  const auto names = [&](int worker) {
    const std::string& host = topology_.ranks(worker).host();
    const auto node = nodes_.find(host);
    return std::vector<std::string>{host, node == nodes_.end() ? "" : node->second->group(), ""};
  };
  const DeviceInfo& device_a = topology_.ranks(a).device();
  const DeviceInfo& device_b = topology_.ranks(b).device();
  const bool rails = device_a.has_rail() && device_b.has_rail();
  const auto names_a = names(a), names_b = names(b);
  // Host to host, host to group, group to group, and so on: by how much is left open.
  for (size_t open = 0; open <= 4; ++open) {
    for (size_t i = 0; i <= std::min<size_t>(open, 2); ++i) {
      if (open - i > 2) continue;
      const auto found = network_.find({names_a[i], names_b[open - i]});
      if (found == network_.end()) continue;
      const NetworkLink& link = *found->second;
      if (link.rail_aligned() && rails && device_a.rail() != device_b.rail() &&
          given(link.cross_rail())) {
        return link.cross_rail();
      }
      return link.speed();
    }
  }
  return kEthernet;
}

const LinkSpeed& LinkGraph::between(int a, int b) const {
  if (!pairs_.empty()) {
    const std::pair<int, int> pair = std::minmax(a, b);
    const auto found = pairs_.find(pair);
    if (found != pairs_.end()) return *found->second;
  }
  const int island = island_of(a);
  if (island >= 0 && island == island_of(b) && given(topology_.islands(island).link())) {
    return topology_.islands(island).link();
  }
  const RankInfo& rank_a = topology_.ranks(a);
  const RankInfo& rank_b = topology_.ranks(b);
  if (rank_a.host() != rank_b.host()) return network(a, b);
  const auto node = nodes_.find(rank_a.host());
  if (node != nodes_.end() && given(node->second->between_islands())) {
    return node->second->between_islands();
  }
  const bool cpus =
      rank_a.device().kind() == DEVICE_KIND_CPU && rank_b.device().kind() == DEVICE_KIND_CPU;
  return cpus ? kMemory : kHostBridge;
}

std::vector<const LinkSpeed*> LinkGraph::all() const {
  std::set<const LinkSpeed*> found;
  std::map<std::string, std::vector<int>> hosts;
  for (int worker = 0; worker < topology_.ranks_size(); ++worker) {
    hosts[topology_.ranks(worker).host()].push_back(worker);
  }
  for (const auto& [pair, speed] : pairs_) found.insert(speed);
  for (const Island& island : topology_.islands()) {
    if (island.ranks_size() > 1 && given(island.link())) found.insert(&island.link());
  }
  for (const auto& [host, workers] : hosts) {
    for (size_t i = 0; i < workers.size() && workers.size() <= 64; ++i) {
      for (size_t j = i + 1; j < workers.size(); ++j)
        found.insert(&between(workers[i], workers[j]));
    }
    const auto node = nodes_.find(host);
    if (workers.size() > 64 && node != nodes_.end() && given(node->second->between_islands())) {
      found.insert(&node->second->between_islands());
    }
  }
  if (hosts.size() > 1) {
    bool any = false;
    for (const NetworkLink& link : topology_.network()) {
      found.insert(&link.speed());
      if (link.rail_aligned() && given(link.cross_rail())) found.insert(&link.cross_rail());
      any = any || (link.a().empty() && link.b().empty());
    }
    if (!any) found.insert(&kEthernet);
  }
  return {found.begin(), found.end()};
}

}  // namespace trireme
