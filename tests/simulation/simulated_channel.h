// SPDX-License-Identifier: Apache-2.0
// The control connections of a simulated job: each message takes its time, and those of one rank
// keep their order.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "tests/simulation/timeline.h"
#include "worker/comm/channel.h"

namespace trireme {

class SimulatedChannel : public Channel {
 public:
  SimulatedChannel(Timeline& timeline, Random& random, std::chrono::microseconds delay_max)
      : timeline_(timeline), random_(random), delay_max_(delay_max) {}

  // The coordinator's end.
  void send(int rank, const ToWorker& message) override {
    num_in_flight_[rank] += message.has_micro_batch() ? 1 : 0;
    if (message.has_abandon()) abandoned_.insert(rank);
    timeline_.at(arrival(to_worker_[rank]), [this, rank, message] { receiver_(rank, message); });
  }
  std::optional<ChannelEvent> poll() override {
    if (events_.empty()) return std::nullopt;
    ChannelEvent event = std::move(events_.front());
    events_.pop_front();
    num_in_flight_[event.rank] -= event.message.has_result() ? 1 : 0;
    return event;
  }
  void set_wake(std::function<void()> wake) override { wake_ = std::move(wake); }

  // Micro-batches that this rank has been sent, less its results that have been taken.
  int num_in_flight(int rank) { return num_in_flight_[rank]; }
  bool is_abandoned(int rank) const { return abandoned_.contains(rank); }

  // The workers' ends.
  void set_receiver(std::function<void(int, const ToWorker&)> receiver) {
    receiver_ = std::move(receiver);
  }
  // Returns when it will arrive.
  Clock::time_point report(ChannelEvent event) {
    const Clock::time_point time = arrival(to_coordinator_[event.rank]);
    timeline_.at(time, [this, event = std::move(event)] {
      events_.push_back(event);
      wake_();
    });
    return time;
  }

 private:
  Clock::time_point arrival(Clock::time_point& last) {
    last = std::max(last, timeline_.now() + random_.up_to(delay_max_));
    return last;
  }

  Timeline& timeline_;
  Random& random_;
  std::chrono::microseconds delay_max_;
  std::map<int, Clock::time_point> to_worker_;  // arrival of the last message
  std::map<int, Clock::time_point> to_coordinator_;
  std::map<int, int> num_in_flight_;
  std::set<int> abandoned_;
  std::deque<ChannelEvent> events_;
  std::function<void()> wake_;
  std::function<void(int, const ToWorker&)> receiver_;
};

}  // namespace trireme
