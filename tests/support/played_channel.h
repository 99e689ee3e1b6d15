// SPDX-License-Identifier: Apache-2.0
// Rank 0's end of control connections to workers that a test plays: it says what they answer in
// send(), and push() is what rank 0 hears of them, in order. One thread.
#pragma once

#include <deque>
#include <functional>
#include <optional>

#include "worker/comm/channel.h"

namespace trireme {

class PlayedChannel : public Channel {
 public:
  void push(const ChannelEvent& event) { events_.push_back(event); }
  std::optional<ChannelEvent> poll() override {
    if (events_.empty()) return std::nullopt;
    std::optional<ChannelEvent> event(events_.front());
    events_.pop_front();
    return event;
  }
  void set_wake(std::function<void()>) override {}

 private:
  std::deque<ChannelEvent> events_;
};

}  // namespace trireme
