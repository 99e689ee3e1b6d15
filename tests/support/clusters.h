// SPDX-License-Identifier: Apache-2.0
// The named clusters of tests/data/clusters, and what a user without a planner would do with them.
#pragma once

#include <string>
#include <vector>

#include "topology/placement.h"
#include "topology/stage_types.h"

namespace trireme {

struct NamedCluster {
  std::string name;
  Topology topology;
  ModelSpec model;
  PlacementOptions options;  // the load, limits and assumptions of the reference numbers
  // Of a prototype of the cost model; 0: not feasible.
  double requests_per_s = 0, bound = 0, ms_per_token = 0;
  double best_uniform = 0, rule = 0, accelerate = 0;
  int devices() const { return topology.ranks_size(); }
};

std::vector<NamedCluster> named_clusters();

// Requests/s of the same cost model.
struct Baselines {
  double best_uniform = 0;  // the best of all equal TP and PP, with equal layers
  double rule = 0;          // TP as large as an island allows, the best PP, equal layers
  double accelerate = 0;    // layers by memory, one device working at a time
};
Baselines baselines(const NamedCluster& cluster);

}  // namespace trireme
