// SPDX-License-Identifier: Apache-2.0
// The rule of health: what heartbeats, ends of connections and a clock make of a rank. Pure: no
// thread, no clock of its own.
//
// A heartbeat comes from a thread of its own. It proves that the rank's process runs, not that its
// work goes on; and a step may rightly take a minute. So:
//  - dead: its control connection has ended, or it was silent for --dead_after.
//  - suspected, silent: no heartbeat for 2 s.
//  - A rank moves when from one heartbeat to the next it has begun an operation, or, while it
//    computes, its thread has used CPU time. So a long prefill moves; a wedged thread does not.
//  - suspected, wedged: it is in an operation, waits for no other rank, and has not moved for
//    kWedgedAfter.
//  - A rank that waits for others is as good as they are. Only where nobody on whom it waits, and
//    on whom those wait in turn, computes or is in doubt already (each waits for another, or
//    idles), and neither they nor this rank have moved for kWedgedAfter, it is suspected of a
//    standstill.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/request.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

inline constexpr std::chrono::seconds kWedgedAfter{10};

// What is known of one rank.
struct RankRecord {
  int rank = 0;
  std::string host;
  int replica = -1;  // -1: a spare
  int stage = -1;
  bool replica_lost = false;
  bool silent = false;  // as the channel found
  bool dead = false;
  std::string reason;                      // of silent and dead
  std::optional<Clock::time_point> heard;  // when the last heartbeat came
  Clock::time_point moved;                 // the last that showed it move
  Heartbeat beat;                          // that last one
};

// Takes a heartbeat in.
void note_heartbeat(RankRecord& rank, const Heartbeat& beat, Clock::time_point now);

struct Verdict {
  enum class State { kServing, kSuspected, kDead, kAbandoned, kSpare } state = State::kServing;
  std::string why;  // of kSuspected and kDead
};

// Of each of `ranks`, which are all ranks of the job, ascending.
std::vector<Verdict> judge(std::span<const RankRecord> ranks, Clock::time_point now);

const char* name_of(Verdict::State state);
// "rank 2 (host a, stage 1)"
std::string name_of(const RankRecord& rank);
// "layer 7 all-reduce", "receive activations", "idle"
std::string operation_of(const Heartbeat& beat);
// "in micro-batch 17, layer 7 all-reduce, waiting for rank 1, for 0.3 s when last heard 0.1 s ago"
std::string doing(const RankRecord& rank, Clock::time_point now);
// "2.1 s"
std::string seconds_text(Clock::duration duration);

// Whether what befell `other` is explained by the failure of `first` so long ago: it is of the same
// replica, or a host or a launcher may be taking the whole job down.
bool follows_from(const RankRecord& first, Clock::duration since_first, const RankRecord& other);

}  // namespace trireme
