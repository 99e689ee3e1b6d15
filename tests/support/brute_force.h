// SPDX-License-Identifier: Apache-2.0
// The best placement by trying everything over identified devices: replicas as sets of devices, all
// orders of stages, all ways to form groups, the best cut of layers for each. Shares the cost model
// with the planner, and nothing else.
#pragma once

#include "topology/placement.h"

namespace trireme {

// Requests/s, within the limit on TPOT. REQUIRES: at most 8 ranks, assumptions.exact_bytes not set.
double brute_force_throughput(const Topology& topology, const ModelSpec& model,
                              const PlacementOptions& options);

}  // namespace trireme
