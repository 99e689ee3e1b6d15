// SPDX-License-Identifier: Apache-2.0
// --verify_checkpoint: every node has read and digested every tensor; here the digests are
// compared.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

class WeightCheck {
 public:
  // ranks: the workers that load; their host is their node.
  explicit WeightCheck(const std::vector<RankInfo>& ranks);
  // What a rank read for its node.
  void add(int rank, const TensorDigests& digests);
  // All ranks are ready. Returns what there is to say: tensors, bytes, one digest over all. Throws
  // kFailedPrecondition naming tensor, file, ranks, hosts and digests where nodes differ.
  std::string finish() const;

 private:
  struct Node {
    std::vector<int> ranks;
    std::map<std::string, std::string> digests;  // by tensor and file
    uint64_t bytes = 0;
  };
  std::map<int, std::string> host_of_;
  std::map<std::string, Node> nodes_;  // by host
};

}  // namespace trireme
