// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>

#include "kernels/base/error.h"
#include "topology/placement.h"
#include "topology/topology.h"

namespace trireme {
namespace {

// The same machine with these ranks alone.
Topology part_of(const Topology& topology, const std::set<int32_t>& ranks) {
  Topology part;
  std::set<std::string> hosts;
  for (const RankInfo& rank : topology.ranks()) {
    if (!ranks.count(rank.rank())) continue;
    *part.add_ranks() = rank;
    hosts.insert(rank.host());
  }
  for (const Island& island : topology.islands()) {
    Island kept = island;
    kept.clear_ranks();
    for (const int32_t rank : island.ranks()) {
      if (ranks.count(rank)) kept.add_ranks(rank);
    }
    if (!kept.ranks().empty()) *part.add_islands() = std::move(kept);
  }
  for (const Link& link : topology.links()) {
    if (ranks.count(link.rank_a()) && ranks.count(link.rank_b())) *part.add_links() = link;
  }
  for (const NodeInfo& node : topology.nodes()) {
    if (hosts.count(node.host())) *part.add_nodes() = node;
  }
  *part.mutable_all_reduce_tables() = topology.all_reduce_tables();
  *part.mutable_network() = topology.network();
  return part;
}

bool uses(const ReplicaSpec& replica, const std::set<int32_t>& ranks) {
  const std::vector<int> own = ranks_of(replica);
  return std::any_of(own.begin(), own.end(), [&](int rank) { return ranks.contains(rank); });
}

void take_ranks(const ReplicaSpec& replica, std::set<int32_t>& ranks) {
  for (const int rank : ranks_of(replica)) ranks.erase(rank);
}

}  // namespace

Placement replan_placement(const Topology& topology, const ModelSpec& model,
                           const PlacementOptions& options, const Placement& old) {
  std::set<int32_t> there, lost;
  for (const RankInfo& rank : topology.ranks()) there.insert(rank.rank());
  for (const ReplicaSpec& replica : old.replicas()) {
    for (const int rank : ranks_of(replica)) {
      if (!there.contains(rank)) lost.insert(rank);
    }
  }
  Placement placement = old;
  placement.clear_replicas();
  placement.clear_spare_ranks();
  std::set<int32_t> free = there;
  for (const ReplicaSpec& replica : old.replicas()) {
    if (uses(replica, lost)) continue;
    *placement.add_replicas() = replica;
    take_ranks(replica, free);
  }
  // One stream alone needs one replica; with none left, everything is planned anew.
  if (placement.replicas().empty()) return plan_placement(topology, model, options);
  if (!free.empty() && options.objective != OBJECTIVE_LATENCY) {
    PlacementOptions rest = options;
    if (rest.dp) rest.dp = std::max(1, *options.dp - placement.replicas_size());
    try {
      const Placement more = plan_placement(part_of(topology, free), model, rest);
      // KV blocks are of all replicas alike.
      placement.set_num_blocks(std::min(placement.num_blocks(), more.num_blocks()));
      for (const ReplicaSpec& replica : more.replicas()) {
        *placement.add_replicas() = replica;
        take_ranks(replica, free);
      }
    } catch (const Error&) {
      // What is free holds no replica: it stays spare.
    }
  }
  for (const int32_t rank : free) placement.add_spare_ranks(rank);
  predict_bytes(model, placement);
  const double bound = old.predicted().bound();
  predict_times(topology, model, options, placement);
  PlacementPrediction& predicted = *placement.mutable_predicted();
  predicted.set_bound(bound);
  predicted.set_method("kept what was not lost; " + old.predicted().method());
  // Fewer devices are never better: the old bound holds.
  const bool latency = options.objective == OBJECTIVE_LATENCY;
  predicted.set_gap(
      std::max(0.0, latency ? predicted.value() / bound - 1 : bound / predicted.value() - 1));
  return placement;
}

}  // namespace trireme
