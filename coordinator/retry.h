// SPDX-License-Identifier: Apache-2.0
// When a request that is refused for want of a place may come again.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <string>

#include "kernels/base/error.h"

namespace trireme {

// kResourceExhausted, and for how long.
class TryLater : public Error {
 public:
  // The message gets "; try again in 1.2 s".
  TryLater(const std::string& message, std::chrono::milliseconds retry_delay);
  std::chrono::milliseconds retry_delay() const { return retry_delay_; }

 private:
  std::chrono::milliseconds retry_delay_;
};

// How fast places come free, by the requests that ended lately. Not for several threads at once.
class RetryPace {
 public:
  using Time = std::chrono::steady_clock::time_point;

  void ended(Time when);
  // Until so many places are free: how many ended at a time, and the time between two such, each
  // the median of the latest; a second as long as that is not known; from 100 ms to 30 s.
  std::chrono::milliseconds delay(int32_t places) const;

 private:
  // Sequences of a batch that are equally long end together.
  struct Tick {
    Time when;
    int32_t ended = 0;
  };
  std::deque<Tick> ticks_;
};

}  // namespace trireme
