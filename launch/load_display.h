// SPDX-License-Identifier: Apache-2.0
// Progress of a job-wide load: per cent of every rank's work, rate, time left, and which rank keeps
// the others waiting. One line that changes on a terminal, else a line every two seconds. Reaches
// 100 % when every worker is ready and not before. Used by one thread; its clock is the caller's.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "proto/micro_batch.pb.h"

namespace trireme {

class LoadDisplay {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // verb: what is going on, such as "loading"; write: gets text as it is to appear, line ends
  // included.
  LoadDisplay(const std::string& verb, bool terminal, std::function<void(const std::string&)> write,
              Time now);

  // Before the first update: who takes part.
  void expect(int rank, const std::string& host);
  void update(int rank, const LoadProgress& progress);
  void ready(int rank);
  // Shows what there is to show, if it is time; call it often.
  void tick(Time now);
  // Every worker is ready.
  void finish(Time now);

 private:
  struct Rank {
    std::string host;
    LoadProgress progress;
    bool started = false;  // has said how much it has to do
    bool ready = false;
    double share() const;  // of its work that is done
  };
  void show(Time now, bool last);
  double rate(Time now) const;  // bytes per second lately
  std::string time_left(Time now) const;
  std::string who_lags() const;

  const std::string verb_;
  const bool terminal_;
  const std::function<void(const std::string&)> write_;
  const Time start_;
  Time shown_;
  std::map<int, Rank> ranks_;
  std::deque<std::pair<Time, uint64_t>> samples_;  // bytes done at a time, of the last seconds
};

}  // namespace trireme
