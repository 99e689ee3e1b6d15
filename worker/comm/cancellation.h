// SPDX-License-Identifier: Apache-2.0
// Tells a rank's waits to give up: set once by whoever learns that the replica cannot go on (the
// control connection's thread), read by every wait of the worker's thread. A reset() starts the
// next epoch when the waits have been abandoned.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "kernels/base/error.h"

namespace trireme {

class Cancellation {
 public:
  void cancel(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (!flag_.load(std::memory_order_relaxed)) reason_ = reason;
    flag_.store(true, std::memory_order_release);
  }
  void reset() {
    const std::lock_guard lock(mutex_);
    reason_.clear();
    flag_.store(false, std::memory_order_release);
  }
  bool cancelled() const { return flag_.load(std::memory_order_acquire); }
  std::string reason() const {
    const std::lock_guard lock(mutex_);
    return reason_;
  }
  // Throws kCancelled with the reason.
  void throw_if_cancelled() const {
    if (cancelled()) throw Error(Code::kCancelled, reason());
  }

 private:
  std::atomic<bool> flag_{false};
  mutable std::mutex mutex_;
  std::string reason_;  // guarded by mutex_
};

}  // namespace trireme
