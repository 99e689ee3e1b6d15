// SPDX-License-Identifier: Apache-2.0
// How fast the replicas are beside each other, learnt from the micro-batches that they computed.
//
// Tokens per second alone would mislead: a step costs nearly as much for one token as for eight, so
// a replica with little to do would look slow, get less to do, and look slower still. So only
// micro-batches of like size are compared.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trireme {

class ReplicaSpeeds {
 public:
  explicit ReplicaSpeeds(int num_replicas) : replicas_(static_cast<size_t>(num_replicas)) {}

  // A micro-batch of `tokens` kept the replica busy for so long.
  void note(int replica, int32_t tokens, double seconds);
  // The replica's time per token over the mean of those that can be compared with it: 1 until there
  // is one.
  double slowness(int replica) const;

 private:
  // Seconds per token, smoothed, of micro-batches with [2^i, 2^(i + 1)) tokens; 0: none yet.
  using BySize = std::array<double, 31>;
  std::vector<BySize> replicas_;
};

}  // namespace trireme
