// SPDX-License-Identifier: Apache-2.0
// How many KV blocks a replica with GPUs has: the plan's, unless a rank has memory for fewer after
// its load and its largest steps, because others use its GPU or libraries took more than was kept
// for them. Never more: what was planned is what is served.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

class KvAgreement {
 public:
  // Both outlive it.
  KvAgreement(const Topology& topology, const Placement& placement)
      : topology_(topology), placement_(placement) {}

  struct Decision {
    int replica = 0;
    int32_t num_blocks = 0;
    std::vector<int> ranks;  // of the replica: all are to allocate so many
    std::string why;         // a sentence; empty: as planned
  };
  // Takes a rank's word; of the last rank of its replica it makes a decision. Throws
  // kInvalidArgument for a word that cannot be, and kResourceExhausted, naming the rank and what it
  // has, where one sequence of the context has no room.
  std::optional<Decision> take(int rank, const KvRoom& room);

 private:
  int replica_of(int rank, std::vector<int>& ranks) const;
  std::string describe(int rank, const KvRoom& room) const;
  [[noreturn]] void refuse(int rank, const KvRoom& room, int64_t needed) const;

  const Topology& topology_;
  const Placement& placement_;
  std::map<int, KvRoom> rooms_;  // by rank
};

}  // namespace trireme
