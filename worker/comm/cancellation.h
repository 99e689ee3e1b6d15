// SPDX-License-Identifier: Apache-2.0
// Tells a rank's waits to give up: set once by whoever learns that the replica cannot go on (the
// control connection's thread), read by every wait of the worker's thread. A reset() starts the
// next epoch when the waits have been abandoned.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
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
  bool cancelled() const { return flag_.load(std::memory_order_acquire) || late(); }
  std::string reason() const {
    const std::lock_guard lock(mutex_);
    return reason_;
  }
  // Throws kCancelled with the reason, or kDeadlineExceeded.
  void throw_if_cancelled() const {
    if (flag_.load(std::memory_order_acquire)) throw Error(Code::kCancelled, reason());
    if (late()) throw Error(Code::kDeadlineExceeded, "no answer in time");
  }

  // For what may wait for a silent peer with nobody to cancel it: waits give up at this time as
  // well. By the thread that waits; no_deadline() ends it.
  void set_deadline(std::chrono::steady_clock::time_point deadline) {
    deadline_ = deadline.time_since_epoch().count();
  }
  void no_deadline() { deadline_ = kNever; }

 private:
  static constexpr int64_t kNever = INT64_MAX;

  bool late() const {
    const int64_t deadline = deadline_.load(std::memory_order_relaxed);
    return deadline != kNever &&
           std::chrono::steady_clock::now().time_since_epoch().count() >= deadline;
  }

  std::atomic<bool> flag_{false};
  std::atomic<int64_t> deadline_{kNever};  // of the steady clock
  mutable std::mutex mutex_;
  std::string reason_;  // guarded by mutex_
};

}  // namespace trireme
