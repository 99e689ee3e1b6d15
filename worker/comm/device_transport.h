// SPDX-License-Identifier: Apache-2.0
// The ways of tensors that lie where a rank's device has them: NCCL among GPUs that can, else
// through the host's memory.
#pragma once

#include <memory>
#include <set>
#include <span>
#include <string>

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

struct DeviceTransportOptions {
  int rank = 0;              // this one
  std::set<int> nccl_ranks;  // world ranks that may use NCCL with each other; empty: none
  KeyExchange* keys = nullptr;
  const Cancellation* cancellation = nullptr;
  std::shared_ptr<Progress> progress;
  std::string library = kNcclLibrary;
};

// Groups whose members are all in nccl_ranks use NCCL, and every member sees that alike. What
// `host` and the options point to outlives the groups; the transport itself need not.
std::unique_ptr<Transport> make_device_transport(Transport& host, Backend& backend,
                                                 const DeviceTransportOptions& options);

}  // namespace trireme
