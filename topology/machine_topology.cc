// SPDX-License-Identifier: Apache-2.0
#include "topology/machine_topology.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "topology/islands.h"
#include "topology/machine_file.h"
#include "topology/machine_health.h"
#include "topology/machine_paths.h"

namespace trireme {
namespace {

constexpr int kMaxNotes = 200;

void set_nic(const Nic& nic, const std::map<std::string, int32_t>& rails, NicInfo& info) {
  info.set_name(nic.name);
  info.set_rate_bytes_per_s(nic.bits_per_s / 8);
  info.set_state(nic.state == Nic::State::kActive ? NIC_STATE_ACTIVE
                 : nic.state == Nic::State::kDown ? NIC_STATE_DOWN
                                                  : NIC_STATE_UNKNOWN);
  info.set_link_layer(nic.link_layer);
  info.set_gdr(nic.gdr.value_or(false));
  info.set_pci_id(nic.pci_id);
  if (nic.numa >= 0) info.set_numa_node(nic.numa);
  const auto rail = rails.find(nic.pci_id);
  if (rail != rails.end()) info.set_rail(rail->second);
  info.set_port(nic.port);
}

// Cards that are the nearest to some GPU over PCIe or the CPU, numbered by their PCI ids. One alone
// makes no rail.
std::map<std::string, int32_t> find_rails(const Machine& machine) {
  std::set<std::string> cards;
  for (size_t gpu = 0; gpu < machine.gpus.size(); ++gpu) {
    for (const size_t nic : nearest_nics(machine, gpu)) {
      const Nic& near = machine.nics[nic];
      const bool fast = near.bits_per_s == 0 || near.bits_per_s >= 25e9;
      if (fast && !near.pci_id.empty() &&
          nic_path(machine, gpu, near).link_class <= LINK_CLASS_PHB) {
        cards.insert(near.pci_id);
      }
    }
  }
  std::map<std::string, int32_t> rails;
  if (cards.size() < 2) return rails;
  for (const std::string& card : cards) rails.emplace(card, static_cast<int32_t>(rails.size()));
  return rails;
}

void add_node(Topology& topology, const Machine& machine,
              const std::map<std::string, int32_t>& rails) {
  NodeInfo& node = *topology.add_nodes();
  node.set_host(machine.host);
  node.set_group(machine.group);
  int virtual_nics = 0;
  std::set<std::pair<std::string, int32_t>> seen;
  for (const Nic& nic : machine.nics) {
    virtual_nics += nic.is_virtual ? 1 : 0;
    if (nic.is_virtual || !seen.emplace(nic.name, nic.port).second) continue;
    set_nic(nic, rails, *node.add_nics());
  }
  const auto note = [&](const std::string& text) {
    if (node.notes_size() < kMaxNotes) node.add_notes(text);
  };
  for (const std::string& text : machine.missing) note("missing: " + text);
  for (const std::string& text : machine.notes) note(text);
  for (const Nic& nic : machine.nics) {
    for (const std::string& text : nic.notes) {
      if (!nic.is_virtual) note(nic.name + ": " + text);
    }
  }
  if (virtual_nics > 0) note(std::to_string(virtual_nics) + " virtual NICs left out");
  if (!machine.nvlink_domain.empty()) note("NVLink domain " + machine.nvlink_domain);
}

// Ranks of the machine's GPUs: by the GPU's index, -1 where none has it.
std::vector<int32_t> ranks_of(const Topology& topology, const Machine& machine) {
  std::vector<int32_t> ranks(machine.gpus.size(), -1);
  for (const RankInfo& rank : topology.ranks()) {
    if (rank.host() != machine.host) continue;
    const int32_t gpu = machine.find_gpu(rank.device().pci_id());
    if (gpu >= 0) ranks[static_cast<size_t>(gpu)] = rank.rank();
  }
  return ranks;
}

bool is_alike(const LinkSpeed& a, const LinkSpeed& b) {
  return a.link_class() == b.link_class() && a.nvlinks() == b.nvlinks() &&
         a.bandwidth_bytes_per_s() == b.bandwidth_bytes_per_s();
}

void add_islands(Topology& topology, const Machine& machine, const std::vector<int32_t>& ranks,
                 std::vector<int>& island_of) {
  for (std::vector<size_t> group : find_islands(machine)) {
    std::erase_if(group, [&](size_t gpu) { return ranks[gpu] < 0; });
    if (group.size() < 2) continue;
    Island& island = *topology.add_islands();
    for (const size_t gpu : group) {
      island.add_ranks(ranks[gpu]);
      island_of[gpu] = topology.islands_size() - 1;
    }
    *island.mutable_link() = island_link(machine, group);
    const AllReduceTable table = nominal_table(machine, group);
    island.set_all_reduce_table(table.name());
    const auto& tables = topology.all_reduce_tables();
    const auto same = std::find_if(tables.begin(), tables.end(), [&](const AllReduceTable& other) {
      return other.name() == table.name();
    });
    if (same == tables.end()) *topology.add_all_reduce_tables() = table;
  }
}

// Pairs that neither their island nor the way between islands describes.
void add_links(Topology& topology, const Machine& machine, const std::vector<int32_t>& ranks,
               const std::vector<int>& island_of) {
  DevicePath far;
  const auto together = [&](size_t a, size_t b) {
    return island_of[a] >= 0 && island_of[a] == island_of[b];
  };
  for (size_t a = 0; a < ranks.size(); ++a) {
    for (size_t b = a + 1; b < ranks.size(); ++b) {
      if (ranks[a] < 0 || ranks[b] < 0 || together(a, b)) continue;
      const DevicePath path = gpu_path(machine, a, b);
      if (path.link_class > far.link_class ||
          (path.link_class == far.link_class && path.bytes_per_s < far.bytes_per_s)) {
        far = path;
      }
    }
  }
  NodeInfo& node = *topology.mutable_nodes()->rbegin();
  if (far.link_class != LINK_CLASS_UNSPECIFIED) *node.mutable_between_islands() = link_speed(far);
  std::set<std::pair<int32_t, int32_t>> known;  // were measured
  for (const Link& link : topology.links()) known.emplace(link.rank_a(), link.rank_b());
  for (size_t a = 0; a < ranks.size(); ++a) {
    for (size_t b = a + 1; b < ranks.size(); ++b) {
      if (ranks[a] < 0 || ranks[b] < 0) continue;
      if (known.contains(std::minmax(ranks[a], ranks[b]))) continue;
      const LinkSpeed speed = link_speed(gpu_path(machine, a, b));
      const LinkSpeed& general =
          together(a, b) ? topology.islands(island_of[a]).link() : node.between_islands();
      if (is_alike(speed, general)) continue;
      Link& link = *topology.add_links();
      link.set_rank_a(std::min(ranks[a], ranks[b]));
      link.set_rank_b(std::max(ranks[a], ranks[b]));
      *link.mutable_speed() = speed;
    }
  }
}

// A CPU rank whose cores lie in one NUMA node is there.
void place_cpu_ranks(Topology& topology, const Machine& machine) {
  for (RankInfo& rank : *topology.mutable_ranks()) {
    DeviceInfo& device = *rank.mutable_device();
    if (rank.host() != machine.host || device.kind() != DEVICE_KIND_CPU || device.cpus().empty()) {
      continue;
    }
    for (const NumaNode& node : machine.numa) {
      const std::set<int32_t> cores(node.cores.begin(), node.cores.end());
      const bool inside = std::all_of(device.cpus().begin(), device.cpus().end(),
                                      [&](int32_t core) { return cores.contains(core); });
      if (inside && node.id >= 0) device.set_numa_node(node.id);
    }
  }
}

// The fastest of the node's NICs, which one message goes by; nullptr: it has none that is up.
const NicInfo* best_nic(const NodeInfo& node) {
  const NicInfo* best = nullptr;
  for (const NicInfo& nic : node.nics()) {
    if (nic.state() == NIC_STATE_DOWN) continue;
    if (best == nullptr || nic.rate_bytes_per_s() > best->rate_bytes_per_s()) best = &nic;
  }
  return best;
}

LinkSpeed network_speed(double bytes_per_s, bool infiniband) {
  constexpr double kReached = 0.8;  // of a port's rate, by one message
  LinkSpeed speed;
  speed.set_link_class(LINK_CLASS_NET);
  speed.set_latency_s(infiniband ? 20e-6 : 50e-6);
  speed.set_bandwidth_bytes_per_s(kReached * bytes_per_s);
  speed.set_nominal_bandwidth_bytes_per_s(bytes_per_s);
  return speed;
}

// A fabric file names hosts that other files describe.
void merge_hosts(std::vector<Machine>& machines) {
  std::map<std::string, size_t> fabric;
  for (size_t i = 0; i < machines.size(); ++i) {
    if (machines[i].numa.empty() && machines[i].gpus.empty()) fabric.emplace(machines[i].host, i);
  }
  std::set<size_t> used;
  for (Machine& machine : machines) {
    const auto found = fabric.find(machine.host);
    if (found == fabric.end() || &machines[found->second] == &machine) continue;
    const Machine& network = machines[found->second];
    if (machine.group.empty()) machine.group = network.group;
    if (machine.nvlink_domain.empty()) machine.nvlink_domain = network.nvlink_domain;
    if (machine.nics.empty()) machine.nics = network.nics;
    used.insert(found->second);
  }
  std::vector<Machine> kept;
  for (size_t i = 0; i < machines.size(); ++i) {
    if (!used.contains(i)) kept.push_back(std::move(machines[i]));
  }
  std::map<std::string, int> count;
  for (Machine& machine : kept) {
    const int number = ++count[machine.host];
    if (number > 1) machine.host += "-" + std::to_string(number);
  }
  machines = std::move(kept);
}

}  // namespace

DeviceInfo device_info(const Machine& machine, size_t index) {
  const Gpu& gpu = machine.gpus[index];
  DeviceInfo device;
  device.set_kind(gpu.amd ? DEVICE_KIND_UNSPECIFIED : DEVICE_KIND_CUDA);
  device.set_name(gpu.name.empty() ? "GPU" : gpu.name);
  device.set_memory_bytes(gpu.memory_bytes);
  device.set_pci_id(gpu.pci_id);
  device.set_index(gpu.index);
  device.set_compute_capability(gpu.compute_capability);
  const int32_t pci = machine.index_of(gpu);
  const int32_t numa = pci < 0 ? -1 : machine.pci[static_cast<size_t>(pci)].numa;
  if (numa >= 0) device.set_numa_node(numa);
  int32_t links = 0;
  for (const GpuLinks& some : gpu.links) links += some.kind == LinkKind::kC2c ? 0 : some.count;
  device.set_nvlinks(links);
  device.set_nvlinks_expected(gpu.links_expected);
  device.set_degraded(!gpu.degraded.empty());
  device.set_degraded_reason(gpu.degraded);
  for (const std::string& note : gpu.notes) device.add_notes(note);
  for (const std::string& note : health_notes(gpu.health)) device.add_notes(note);
  set_health(gpu.health, *device.mutable_health());
  return device;
}

void add_machine(Topology& topology, const Machine& machine) {
  const std::map<std::string, int32_t> rails = find_rails(machine);
  add_node(topology, machine, rails);
  place_cpu_ranks(topology, machine);
  const std::vector<int32_t> ranks = ranks_of(topology, machine);
  for (RankInfo& rank : *topology.mutable_ranks()) {
    const auto at = rank.host() == machine.host ? std::find(ranks.begin(), ranks.end(), rank.rank())
                                                : ranks.end();
    if (at == ranks.end()) continue;
    const auto gpu = static_cast<size_t>(at - ranks.begin());
    DeviceInfo device = device_info(machine, gpu);
    if (rank.device().memory_bytes() > 0) device.set_memory_bytes(rank.device().memory_bytes());
    for (const size_t nic : nearest_nics(machine, gpu)) {
      const auto rail = rails.find(machine.nics[nic].pci_id);
      if (rail != rails.end() && !device.has_rail()) device.set_rail(rail->second);
    }
    *rank.mutable_device() = device;
  }
  std::vector<int> island_of(ranks.size(), -1);
  add_islands(topology, machine, ranks, island_of);
  add_links(topology, machine, ranks, island_of);
}

void add_network(Topology& topology) {
  if (topology.nodes_size() < 2) return;
  constexpr double kUnknownBytes = 1.25e9;  // as NCCL assumes where no speed is known
  std::map<double, std::vector<int>> nodes_of_rate;
  bool infiniband = true, grouped = false;
  for (int i = 0; i < topology.nodes_size(); ++i) {
    const NicInfo* const nic = best_nic(topology.nodes(i));
    const double rate = nic == nullptr ? 0 : nic->rate_bytes_per_s();
    nodes_of_rate[rate > 0 ? rate : kUnknownBytes].push_back(i);
    infiniband = infiniband && nic != nullptr &&
                 (nic->link_layer() == "InfiniBand" || nic->name().starts_with("mlx5") ||
                  nic->name().starts_with("cxi") || nic->name().starts_with("hfi"));
    grouped = grouped || !topology.nodes(i).group().empty();
  }
  NetworkLink& any = *topology.add_network();
  *any.mutable_speed() = network_speed(nodes_of_rate.begin()->first, infiniband);
  if (grouped || nodes_of_rate.size() == 1) return;
  // Faster nodes are a group of their own.
  const auto name = [](double rate) {
    return "nodes of " + std::to_string(static_cast<int64_t>(rate * 8e-9)) + " Gb/s";
  };
  for (auto a = nodes_of_rate.begin(); a != nodes_of_rate.end(); ++a) {
    for (const int node : a->second) topology.mutable_nodes(node)->set_group(name(a->first));
    for (auto b = a; b != nodes_of_rate.end(); ++b) {
      NetworkLink& link = *topology.add_network();
      link.set_a(name(a->first));
      link.set_b(name(b->first));
      *link.mutable_speed() = network_speed(a->first, infiniband);
    }
  }
}

std::vector<Machine> join_machines(Topology& topology) {
  std::map<std::string, std::string> text_of;  // of each host
  for (RankInfo& rank : *topology.mutable_ranks()) {
    if (!rank.machine().empty()) text_of.emplace(rank.host(), rank.machine());
    rank.clear_machine();
  }
  std::vector<Machine> machines;
  for (const auto& [host, text] : text_of) {
    std::vector<Machine> read = read_machines(text, "of the host " + host, host);
    read.front().host = host;
    add_machine(topology, read.front());
    machines.push_back(std::move(read.front()));
  }
  add_network(topology);
  return machines;
}

Topology topology_of(std::vector<Machine> machines) {
  merge_hosts(machines);
  Topology topology;
  for (const Machine& machine : machines) {
    for (size_t gpu = 0; gpu < machine.gpus.size(); ++gpu) {
      RankInfo& rank = *topology.add_ranks();
      rank.set_rank(topology.ranks_size());
      rank.set_host(machine.host);
      *rank.mutable_device() = device_info(machine, gpu);
    }
  }
  for (const Machine& machine : machines) add_machine(topology, machine);
  add_network(topology);
  return topology;
}

}  // namespace trireme
