// SPDX-License-Identifier: Apache-2.0
// Progress of a job-wide load on stderr: bytes, rate, time left; a bar on a terminal, else a line
// now and then. Reaches 100 % when every worker is ready and not before.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

namespace trireme {

class LoadDisplay {
 public:
  LoadDisplay();
  // A worker's own count; totals become known as workers report.
  void update(int rank, uint64_t bytes_done, uint64_t bytes_total);
  // Every worker is ready.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  struct Count {
    uint64_t done = 0, total = 0;
  };
  void show(bool last);

  bool terminal_;
  Clock::time_point start_, shown_;
  std::map<int, Count> counts_;
};

}  // namespace trireme
