// SPDX-License-Identifier: Apache-2.0
// Sums of groups whose GPUs reach each other's memory go that way where it is faster; all else goes
// as the group's tensors do.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/peer_sum.h"
#include "worker/comm/communicator.h"
#include "worker/comm/queued_work.h"

namespace trireme {

// Up to which bytes a sum goes how; alike in all ranks of a group. Its bits do not depend on that:
// both ways add in rank order.
struct PeerLimits {
  int64_t at_once = 0;  // sent by everyone to everyone
  int64_t most = 0;     // in parts; beyond, as the group's tensors go
};

// What a way took, as the ranks' mean of medians; for the log.
struct PeerTiming {
  int64_t bytes = 0;
  double other_s = 0;  // by the group's own transport
  double at_once_s = 0, in_parts_s = 0;
};

// A rank's part in the sums of its group, as part of what it has queued. Used by its thread.
class PeerGroup final : private QueuedWork::Part {
 public:
  // others: world ranks of the group without this one.
  PeerGroup(std::unique_ptr<PeerSum> peers, std::shared_ptr<QueuedWork> work,
            std::vector<int> others);
  ~PeerGroup() override;
  // x = Σ over ranks of x, in pieces as large as the way allows; queued. at_once: up to which bytes
  // that way is taken.
  void sum(const Tensor& x, int64_t at_once);
  // Such sums were queued, or will be at once.
  void queued();

  PeerSum& peers() { return *peers_; }
  QueuedWork& work() { return *work_; }

 private:
  void end() override { peers_->give_up(); }

  const std::unique_ptr<PeerSum> peers_;
  const std::shared_ptr<QueuedWork> work_;
  const std::vector<int> others_;
};

// All members of `host`, a group of the host's, call these together.

// Exchanges what is needed to reach each other's memory, and tries it with sums whose result is
// known. Null in all ranks if any of them cannot; `why` then says what this one, or that another,
// found. ranks: world ranks of the members.
std::unique_ptr<PeerGroup> meet_peers(Communicator& host, std::span<const int> ranks,
                                      Backend& backend, std::shared_ptr<QueuedWork> work,
                                      std::string& why);
// Where nothing is measured.
PeerLimits fixed_limits(int ranks);
// By timing sums of some sizes both ways against those of `group`, whose members are the same.
PeerLimits measure_limits(Communicator& host, Communicator& group, PeerGroup& peers,
                          Backend& backend, std::vector<PeerTiming>& timings);

// Each may free its memory, where nothing is summed by it after all.
void leave_peers(Communicator& host, std::unique_ptr<PeerGroup> peers);

// `group` with sums as the limits say.
std::unique_ptr<Communicator> sum_over_peers(std::unique_ptr<Communicator> group,
                                             std::unique_ptr<PeerGroup> peers,
                                             const PeerLimits& limits);

}  // namespace trireme
