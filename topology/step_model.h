// SPDX-License-Identifier: Apache-2.0
// What the cost model says of one micro-batch as it is, where predict_times() says it of those that
// the plan assumed. Pure; made once for a placement.
#pragma once

#include <memory>
#include <string>

#include "proto/cluster.pb.h"
#include "topology/cost.h"

namespace trireme {

struct StepTime {
  double compute_s = 0;
  double exchange_s = 0;  // with the other ranks of the stage
};

class StepModel {
 public:
  // The topology must outlive it. REQUIRES: validate_placement returned.
  StepModel(const Topology& topology, const ModelSpec& model, const Placement& placement);
  ~StepModel();

  // `spec`: that stage of the placement. `sampled`: rows that the head computes, where it is.
  StepTime predict(int replica, int stage, const StageSpec& spec, const StepWork& work,
                   double sampled) const;
  // The row of the device table that its slowest device was taken for.
  const std::string& device_type(int replica, int stage) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
