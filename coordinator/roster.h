// SPDX-License-Identifier: Apache-2.0
// Who is in the job, what each rank was last heard doing, and which failed first. Fed by the one
// thread that polls the channel; read by any.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/rank_health.h"
#include "proto/cluster.pb.h"
#include "proto/inference.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

// A rank that has lost a peer may be heard before that peer's end is: so long its report waits.
inline constexpr std::chrono::milliseconds kExplainTime{150};

// What a rank says, fit for one line of the log and for a status.
std::string line_of_rank(std::string_view text);

class Roster {
 public:
  // log: the first failure, and what follows from it, a line each.
  Roster(const Topology& topology, const Placement& placement, bool log);

  // ---- the thread that polls ----
  // Takes in what an event tells of its rank's life. Events of ranks that are not of the job are
  // ignored.
  void hear(const ChannelEvent& event, Clock::time_point now);
  // A replica's ranks have nothing to do any more.
  void abandon(int replica);
  // `rank` failed; `what` says so, with its name. Returns whether it is the first failure, or one
  // that does not follow from an earlier one. Says so in the log: "first failure: …" or "a
  // consequence: …".
  bool note_failure(int rank, const std::string& what, Clock::time_point now);
  // True when a rank's state is another than at the last call.
  bool states_changed(Clock::time_point now);
  // Something is in work, loads, waits or is in doubt: worth telling again after a while.
  bool busy() const;

  // ---- any thread ----
  std::string name(int rank) const;
  // ranks, and serving: a replica is whole, with none of its ranks in doubt.
  v1::ClusterHealth health(Clock::time_point now) const;
  // The latest of the lines that say "first failure: …"; empty: none.
  std::string first_failure() const;

 private:
  struct Failure {
    RankRecord rank;
    Clock::time_point when;
    std::string line;
  };

  const bool log_;
  std::vector<Verdict::State> told_;  // of the polling thread
  mutable std::mutex mutex_;
  // Guarded by mutex_; written by the polling thread only.
  std::vector<RankRecord> ranks_;  // ascending
  std::vector<Failure> failures_;  // that follow from no other
};

}  // namespace trireme
