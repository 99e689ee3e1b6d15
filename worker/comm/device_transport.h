// SPDX-License-Identifier: Apache-2.0
// The ways of tensors that lie where a rank's device has them: NCCL among GPUs that can, else
// through the host's memory; sums also in the memory of GPUs that reach each other's.
#pragma once

#include <memory>
#include <set>
#include <span>
#include <string>

#include "proto/cluster.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/nccl.h"

namespace trireme {

// How keys of groups travel from their first ranks to the others. Used by the worker's thread.
class KeyExchange {
 public:
  virtual ~KeyExchange() = default;
  virtual void give(int tag, const std::string& key, std::span<const int> ranks) = 0;
  // The key of the group with this tag, when it has come. Throws kCancelled.
  virtual std::string take(int tag) = 0;
};

// When sums go by the memory of GPUs that all reach each other's: where that is faster than NCCL,
// which is measured when a group is made, and always without NCCL; if possible at all, else it is
// an error; not.
enum class PeerSums { kAuto, kAlways, kNever };

struct DeviceTransportOptions {
  int rank = 0;              // this one
  std::set<int> nccl_ranks;  // world ranks that may use NCCL with each other; empty: none
  std::set<int> gpu_ranks;   // that have a GPU
  PeerSums peer_sums = PeerSums::kAuto;
  // Sums have the same bits whatever is measured, and whatever the number of rows: never by NCCL.
  bool deterministic = false;
  KeyExchange* keys = nullptr;
  const Cancellation* cancellation = nullptr;
  std::shared_ptr<Progress> progress;
  NcclOptions nccl{};
};

// World ranks of the placement that have a GPU.
std::set<int> gpu_ranks(const Placement& placement);

// Groups whose members are all in nccl_ranks use NCCL, and every member sees that alike, as all
// else in the options but rank. What `host` and the options point to outlives the groups; the
// transport itself need not.
std::unique_ptr<Transport> make_device_transport(Transport& host, Backend& backend,
                                                 const DeviceTransportOptions& options);

}  // namespace trireme
