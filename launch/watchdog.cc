// SPDX-License-Identifier: Apache-2.0
#include "launch/watchdog.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace trireme {

Watchdog::Watchdog(std::chrono::milliseconds timeout, std::string message)
    : message_(std::move(message)), thread_([this, timeout] {
        std::unique_lock lock(mutex_);
        if (ended_.wait_for(lock, timeout, [&] { return in_time_; })) return;
        std::fprintf(stderr, "trireme: %s\n", message_.c_str());
        std::_Exit(1);
      }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    in_time_ = true;
  }
  ended_.notify_one();
  thread_.join();
}

}  // namespace trireme
