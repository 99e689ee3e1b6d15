// SPDX-License-Identifier: Apache-2.0
// A placement by memory alone: what is left where the search finds nothing, so that a refusal can
// name the rank and its bytes.
#pragma once

#include "topology/placement.h"

namespace trireme {

struct Degrees {
  int32_t tp = 1, pp = 1, dp = 1;
};

// Of the first tp x pp x dp workers, in order. Layers are cut among stages in proportion to what
// their ranks can hold, counting the head as the layers that it weighs as much as.
Placement place_by_memory(const Topology& topology, const ModelSpec& model, const Degrees& degrees,
                          const PlacementOptions& options);

}  // namespace trireme
