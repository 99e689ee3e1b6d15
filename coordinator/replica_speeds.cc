// SPDX-License-Identifier: Apache-2.0
#include "coordinator/replica_speeds.h"

#include <bit>
#include <string>

#include "kernels/base/check.h"

namespace trireme {
namespace {

constexpr double kNewest = 0.125;  // the weight of the newest micro-batch

}  // namespace

void ReplicaSpeeds::note(int replica, int32_t tokens, double seconds) {
  CHECK(tokens > 0 && seconds >= 0, "a micro-batch of " + std::to_string(tokens) + " tokens");
  const auto size = static_cast<size_t>(std::bit_width(static_cast<uint32_t>(tokens)) - 1);
  double& known = replicas_[static_cast<size_t>(replica)][size];
  const double measured = seconds / tokens;
  known = known == 0 ? measured : known + kNewest * (measured - known);
}

double ReplicaSpeeds::slowness(int replica) const {
  const BySize& own = replicas_[static_cast<size_t>(replica)];
  double sum = 0;
  int num_sizes = 0;
  for (size_t size = 0; size < own.size(); ++size) {
    double all = 0;
    int num_known = 0;
    for (const BySize& other : replicas_) {
      all += other[size];
      num_known += other[size] > 0 ? 1 : 0;
    }
    if (own[size] == 0 || num_known < 2) continue;
    sum += own[size] / (all / num_known);
    ++num_sizes;
  }
  return num_sizes == 0 ? 1 : sum / num_sizes;
}

}  // namespace trireme
