// SPDX-License-Identifier: Apache-2.0
// A device's constants from measured times of its matrices.
#pragma once

#include <vector>

#include "topology/devices.h"

namespace trireme {

struct MatrixTime {
  double parameters = 0;  // of the matrices, this device's share
  double bytes = 0;       // that they take in memory
  double tokens = 0;
  double seconds = 0;
};

double predict_matrices_s(const DeviceCost& device, const MatrixTime& point);

// Fits em, ec, launch_s and p to the points, by the mean of |log(predicted / measured)|; bandwidth
// and FLOP/s stay as they are. REQUIRES: there are points, all of them positive.
DeviceCost fit_matrices(DeviceCost device, const std::vector<MatrixTime>& points);

}  // namespace trireme
