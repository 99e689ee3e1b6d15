// SPDX-License-Identifier: Apache-2.0
// Between two looks at what another thread or process will do within microseconds.
//
// Not sched_yield: on Linux 6.18, where sessions are scheduled as groups, threads that yielded in a
// loop kept everything else off their core for up to 8 s at a time, our own ranks among it (seen:
// TP2 on two cores fell from 44 to 6 tokens/s). Pausing and short sleeps do as well without that.
#pragma once

#include <chrono>

namespace trireme {

// Owned and used by the thread that waits; a new one for every wait.
class BriefWait {
 public:
  using Clock = std::chrono::steady_clock;

  // Keeps the core for the first 100 µs, for what comes at once; gives it away for some 20 µs at a
  // time after that.
  void pause();
  // Something came: as if the wait had just begun.
  void restart() { began_ = Clock::now(); }
  Clock::duration lasted() const { return Clock::now() - began_; }

 private:
  Clock::time_point began_ = Clock::now();
};

}  // namespace trireme
