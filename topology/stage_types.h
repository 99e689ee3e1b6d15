// SPDX-License-Identifier: Apache-2.0
// From a topology to the planner's numbers: which devices are alike, which groups may compute
// tensor-parallel, and what each such stage costs.
#pragma once

#include <string>
#include <vector>

#include "topology/cost.h"
#include "topology/link_graph.h"
#include "topology/memory.h"
#include "topology/placement.h"
#include "topology/search.h"

namespace trireme {

// Devices of one island that are alike.
struct IslandUse {
  int pool = 0;
  std::vector<int> workers;  // indices into topology.ranks, nearest ones in a row
};

// memory_of() less what is not for the model: the program itself, its libraries and buffers.
double usable_memory(const Topology& topology, int worker, const PlacementOptions& options);

// Seconds per request for which a hop of micro-batches of `batch` sequences keeps the link busy.
double request_hop_s(const LinkSpeed& link, const PlacementOptions& options, double row_bytes,
                     int32_t batch);

// How these workers reduce among themselves; null if they are not of one island. Where a topology
// names no island, the ranks of a node are one, with assumed speeds.
const AllReduceTable* table_of_group(const Topology& topology, const LinkGraph& links,
                                     const std::vector<int>& workers);

struct PlannerInput {
  SearchProblem problem;
  std::vector<IslandUse> islands;
  std::vector<DeviceCost> pool_devices;
  ModelCost model;
  bool uniform_links = false;  // every hop costs the same
};

// `identified`: every island is a pool of its own, so that links can differ. `regions`: of each
// worker; no pool has devices of two. Empty: there is one.
PlannerInput make_problem(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
                          const PlacementOptions& options, bool identified,
                          const std::vector<int>& regions = {});

}  // namespace trireme
