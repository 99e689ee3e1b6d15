// SPDX-License-Identifier: Apache-2.0
// For a call that may never return and cannot be given up, as MPI_Init: ends the process.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace trireme {

// Says `message` on stderr and ends the process with status 1 unless it is destroyed in time.
class Watchdog {
 public:
  Watchdog(std::chrono::milliseconds timeout, std::string message);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;

 private:
  const std::string message_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool in_time_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace trireme
