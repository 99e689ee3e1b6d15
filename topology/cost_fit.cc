// SPDX-License-Identifier: Apache-2.0
#include "topology/cost_fit.h"

#include <cmath>

#include "topology/cost.h"

namespace trireme {

double predict_matrices_s(const DeviceCost& device, const MatrixTime& point) {
  ModelCost model;
  model.layer_parameters = point.parameters;
  model.layer_bytes = point.bytes;
  StageCost stage;
  stage.device = device;
  return matrices_s(model, stage, point.tokens);
}

DeviceCost fit_matrices(DeviceCost device, const std::vector<MatrixTime>& points) {
  const auto loss = [&](const DeviceCost& candidate) {
    double sum = 0;
    for (const MatrixTime& point : points) {
      sum += std::abs(std::log(predict_matrices_s(candidate, point) / point.seconds));
    }
    return sum;
  };
  // Each constant in turn by a factor; the factors shrink when none helps.
  double* constants[] = {&device.launch_s, &device.em, &device.ec, &device.p};
  double factors[] = {1.5, 1.2, 1.2, 1.3};
  double best = loss(device);
  for (int round = 0; round < 60; ++round) {
    bool better = false;
    for (size_t i = 0; i < std::size(constants); ++i) {
      for (const double factor : {factors[i], 1 / factors[i]}) {
        const double before = *constants[i];
        *constants[i] = before * factor;
        if (device.p < 1) device.p = 1;
        const double now = loss(device);
        if (now < best) {
          best = now;
          better = true;
        } else {
          *constants[i] = before;
        }
      }
    }
    if (better) continue;
    for (double& factor : factors) factor = std::sqrt(factor);
  }
  return device;
}

}  // namespace trireme
