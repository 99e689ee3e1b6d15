// SPDX-License-Identifier: Apache-2.0
// The load as rank 0 sees it: from the assignments to the last worker's ready. Main thread only.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/roster.h"
#include "kernels/base/error.h"
#include "launch/load_display.h"
#include "launch/weight_check.h"
#include "proto/cluster.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

class Loading {
 public:
  // The ranks of the placement begin; progress goes to stderr. verify: every host is to digest all
  // weights, also those that none of its ranks needs.
  // roster hears of every event, and of who failed; it outlives this. begin_timeout: in which every
  // rank must be heard to load.
  Loading(const Topology& topology, const Placement& placement, bool verify, Roster& roster,
          std::chrono::milliseconds begin_timeout);

  // Ranks of the placement on the same host as `rank`, ascending: they read together.
  std::vector<int> node_of(int rank) const;

  // Takes one event. Throws kUnavailable where a rank is lost, and what a rank failed with. A rank
  // that failed for want of another is believed by tick(), when that other's end was not heard.
  void handle(const ChannelEvent& event);
  // Shows progress; call it often. Throws as handle(), and kDeadlineExceeded naming the ranks that
  // do not begin.
  void tick();
  bool done() const { return waiting_.empty(); }
  // REQUIRES: done(). Throws where the weights of hosts differ.
  void finish();

 private:
  struct Node {
    std::vector<int> ranks;
    uint64_t bytes_read = 0;    // of the checkpoint, by its ranks from the file system
    uint64_t bytes_needed = 0;  // by its ranks together
  };
  void take_ready(int rank, const Ready& ready);

  // A report that may be the consequence of what is not known yet.
  struct Doubt {
    int rank = 0;
    int blamed = 0;  // 0: nobody
    std::string why;
    std::chrono::steady_clock::time_point when;
  };

  [[noreturn]] void fail(int rank, Code code, const std::string& why);

  const bool verify_;
  Roster& roster_;
  std::map<int, std::string> host_of_;
  std::map<int, std::string> gpu_of_;  // " on GPU 0, NVIDIA H200,"; empty: the rank has none
  std::map<std::string, Node> nodes_;
  std::set<int> waiting_;
  std::set<int> unheard_;  // that have not begun, as far as is known
  const std::chrono::steady_clock::time_point begin_deadline_;
  WeightCheck check_;
  LoadDisplay display_;
  std::optional<Doubt> doubt_;
};

}  // namespace trireme
