// SPDX-License-Identifier: Apache-2.0
// Which search answers: exact where the count vectors are few, column generation else; and how its
// answer is explained.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "topology/stage_types.h"

namespace trireme {

// Equal degrees everywhere, the setting that a user would give by hand.
struct UniformSetting {
  int32_t tp = 1, pp = 1;
  SearchResult result;  // each replica with its own best batch and layers
};

// The best of all of them, as many replicas as there is room for, but those in `but` (tp, pp).
UniformSetting best_uniform(const PlannerInput& input, const PlacementOptions& options,
                            const std::vector<std::pair<int32_t, int32_t>>& but = {});

struct Plan {
  PlannerInput input;
  SearchResult result;
  std::string method;
};

// `hop_factor`: hops between stages are taken to be so much slower than the best link has them.
Plan search_plan(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
                 const PlacementOptions& options, double hop_factor = 1);

// Fills placement.predicted: bound, gap, method, runner-up and why it lost, reasons. REQUIRES:
// predict_times was called.
void explain_plan(const Topology& topology, const Plan& plan, const PlacementOptions& options,
                  Placement& placement);

}  // namespace trireme
