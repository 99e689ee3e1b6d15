// SPDX-License-Identifier: Apache-2.0
// Regions: devices whose links among each other are far better than those to all others. Between
// regions a replica crosses as seldom as it can, so the search counts the devices of each apart.
#pragma once

#include <vector>

#include "topology/stage_types.h"

namespace trireme {

// The region of each worker, from 0.
using Regions = std::vector<int>;

// The ways to divide the workers at a cliff in the speed of their links, finest first; none where
// links are much the same. Workers of an island, and without islands of a host, are in one region.
std::vector<Regions> find_regions(const Topology& topology, const LinkGraph& links,
                                  const PlacementOptions& options, const ModelCost& model);

// Fills what hops cost a replica by the regions that it lies in: never more than they will.
// REQUIRES: the input was made with these regions.
void fill_region_hops(const LinkGraph& links, const PlacementOptions& options,
                      const Regions& regions, PlannerInput& input);

}  // namespace trireme
