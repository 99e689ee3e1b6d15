// SPDX-License-Identifier: Apache-2.0
// Virtual time and seeded chance: all that happens in a simulation comes from these two.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "coordinator/request.h"

namespace trireme {

// What is to happen, in order of time; at the same time in order of planning.
class Timeline {
 public:
  Clock::time_point now() const { return now_; }
  void at(Clock::time_point time, std::function<void()> event) {
    events_.emplace(std::pair(std::max(time, now_), num_planned_++), std::move(event));
  }
  void after(Clock::duration delay, std::function<void()> event) {
    at(now_ + delay, std::move(event));
  }
  // Lets the next thing happen. False: nothing is planned.
  bool step() {
    if (events_.empty()) return false;
    auto next = events_.extract(events_.begin());
    now_ = next.key().first;
    next.mapped()();
    return true;
  }

 private:
  Clock::time_point now_{std::chrono::hours(1)};
  uint64_t num_planned_ = 0;
  std::map<std::pair<Clock::time_point, uint64_t>, std::function<void()>> events_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // Uniform in [low, high].
  int32_t between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(engine_() % (static_cast<uint64_t>(high - low) + 1));
  }
  bool chance(int32_t percent) { return between(1, 100) <= percent; }
  std::chrono::microseconds up_to(std::chrono::microseconds most) {
    return std::chrono::microseconds(between(0, static_cast<int32_t>(most.count())));
  }
  uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace trireme
