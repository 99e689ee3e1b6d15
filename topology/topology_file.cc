// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <set>

#include "kernels/base/error.h"
#include "topology/machine_file.h"
#include "topology/machine_text.h"
#include "topology/machine_topology.h"
#include "topology/text_file.h"
#include "topology/topology.h"

namespace trireme {
namespace {

bool is_json(const std::string& text) { return trim(text).starts_with("{"); }

Topology from_json(const std::string& text, const std::string& path) {
  try {
    return topology_from_json(text);
  } catch (const Error& error) {
    throw Error(error.code(), path + ": " + error.what());
  }
}

// Ranks go on counting; everything that names one follows.
void append(Topology& to, const Topology& more, const std::string& path) {
  const int32_t offset = to.ranks().empty() ? 0 : to.ranks().rbegin()->rank();
  const int32_t least = more.ranks().empty() ? 1 : more.ranks(0).rank();
  const auto shifted = [&](int32_t rank) { return offset == 0 ? rank : rank - least + 1 + offset; };
  std::set<std::string> hosts;
  for (const RankInfo& rank : to.ranks()) hosts.insert(rank.host());
  for (const NodeInfo& node : to.nodes()) hosts.insert(node.host());
  for (const RankInfo& rank : more.ranks()) {
    if (hosts.contains(rank.host())) {
      throw Error(Code::kInvalidArgument, "cannot join the topology " + path + ": the host " +
                                              rank.host() + " is in a file before it");
    }
    RankInfo& copy = *to.add_ranks();
    copy = rank;
    copy.set_rank(shifted(rank.rank()));
  }
  for (const Link& link : more.links()) {
    Link& copy = *to.add_links();
    copy = link;
    copy.set_rank_a(shifted(link.rank_a()));
    copy.set_rank_b(shifted(link.rank_b()));
  }
  for (const Island& island : more.islands()) {
    Island& copy = *to.add_islands();
    copy = island;
    for (int32_t& rank : *copy.mutable_ranks()) rank = shifted(rank);
  }
  to.mutable_nodes()->MergeFrom(more.nodes());
  to.mutable_network()->MergeFrom(more.network());
  std::set<std::string> tables;
  for (const AllReduceTable& table : to.all_reduce_tables()) tables.insert(table.name());
  for (const AllReduceTable& table : more.all_reduce_tables()) {
    if (tables.insert(table.name()).second) *to.add_all_reduce_tables() = table;
  }
}

}  // namespace

Topology read_topology_files(const std::vector<std::string>& paths,
                             std::vector<Machine>* described) {
  const std::string advice =
      "give a Topology file as `trireme probe --json` writes it, or a topology of NCCL or hwloc";
  std::vector<Machine> machines;
  Topology topology;
  std::vector<std::pair<std::string, Topology>> files;
  for (const std::string& path : paths) {
    const std::string text = read_text_file(path, "the topology", advice);
    if (is_json(text)) {
      files.emplace_back(path, from_json(text, path));
      continue;
    }
    for (Machine& machine : read_machines(text, path, std::filesystem::path(path).stem())) {
      machines.push_back(std::move(machine));
    }
    if (machines.size() > kMaxHosts) {
      throw Error(Code::kInvalidArgument, "cannot use the topology files: more than 65536 hosts");
    }
  }
  if (described != nullptr) *described = machines;
  if (!machines.empty()) topology = topology_of(std::move(machines));
  for (const auto& [path, file] : files) {
    if (topology.ranks().empty() && topology.nodes().empty()) {
      topology = file;
    } else {
      append(topology, file, path);
    }
  }
  if (topology.network().empty()) add_network(topology);
  validate_topology(topology);
  return topology;
}

}  // namespace trireme
