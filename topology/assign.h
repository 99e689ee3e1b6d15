// SPDX-License-Identifier: Apache-2.0
// From counts to devices: which group of which island takes which stage, and in which order.
#pragma once

#include <vector>

#include "topology/stage_types.h"

namespace trireme {

struct PlacedStage {
  int type = 0;
  int32_t layers = 0;
  std::vector<int> workers;  // indices into topology.ranks, by tp_rank
};

// A replica's stages in pipeline order, on devices.
struct PlacedReplica {
  int batch = 0;
  int32_t micro_batches = 1;
  std::vector<PlacedStage> stages;
};

// REQUIRES: the counts fit the islands, as every search result does. A replica's stages come near
// each other where that is possible.
std::vector<PlacedReplica> assign_devices(const PlannerInput& input, const LinkGraph& links,
                                          const PlacementOptions& options,
                                          const SearchResult& result);

// Stages of one type exchange devices, with each other and with spare ones, while that makes links
// less busy that hold a replica up. Nothing where all links are equal, or devices many.
void exchange_devices(const PlannerInput& input, const LinkGraph& links,
                      const PlacementOptions& options, std::vector<PlacedReplica>& placed);

}  // namespace trireme
