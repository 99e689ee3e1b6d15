// SPDX-License-Identifier: Apache-2.0
// Messages that wait for a worker's thread: filled by whoever receives them, emptied by it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "kernels/base/brief_wait.h"
#include "kernels/base/error.h"
#include "worker/comm/channel.h"

namespace trireme {

class Inbox {
 public:
  void push(ToWorker message) {
    {
      const std::lock_guard lock(mutex_);
      messages_.push_back(std::move(message));
      something_.store(true, std::memory_order_release);
    }
    doorbell_.notify_one();
  }

  // No more messages come; receive() throws once the queued ones are taken.
  void close(const std::string& reason) {
    {
      const std::lock_guard lock(mutex_);
      if (!closed_) reason_ = reason;
      closed_ = true;
      something_.store(true, std::memory_order_release);
    }
    doorbell_.notify_one();
  }

  // As WorkerChannel::receive. Right after work more work is likely, and a sleeper's wake-up costs
  // 50 µs, so that the first wait after a message spins before it sleeps.
  std::optional<ToWorker> receive(std::chrono::milliseconds timeout) {
    const auto now = std::chrono::steady_clock::now();
    if (after_work_) {
      BriefWait wait;
      while (!something_.load(std::memory_order_acquire) &&
             wait.lasted() < std::min(timeout, kSpin)) {
        wait.pause();
      }
    }
    std::unique_lock lock(mutex_);
    after_work_ = doorbell_.wait_until(lock, now + timeout, [&] { return something_.load(); });
    if (!after_work_) return std::nullopt;
    if (messages_.empty()) throw Error(Code::kUnavailable, reason_);
    std::optional<ToWorker> message(std::move(messages_.front()));
    messages_.pop_front();
    something_.store(!messages_.empty() || closed_, std::memory_order_release);
    return message;
  }

 private:
  static constexpr std::chrono::milliseconds kSpin{2};

  bool after_work_ = false;  // of the receiving thread: its last receive() brought a message
  std::atomic<bool> something_{false};  // messages_ is not empty, or closed_
  std::mutex mutex_;
  std::condition_variable doorbell_;
  // guarded by mutex_
  std::deque<ToWorker> messages_;
  bool closed_ = false;
  std::string reason_;
};

}  // namespace trireme
