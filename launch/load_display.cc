// SPDX-License-Identifier: Apache-2.0
#include "launch/load_display.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "topology/topology.h"

namespace trireme {
namespace {

constexpr std::chrono::milliseconds kBarInterval{100};
constexpr std::chrono::milliseconds kLineInterval{2000};
constexpr int kBarWidth = 30;

}  // namespace

LoadDisplay::LoadDisplay()
    : terminal_(isatty(STDERR_FILENO) == 1), start_(Clock::now()), shown_(start_) {}

void LoadDisplay::update(int rank, uint64_t bytes_done, uint64_t bytes_total) {
  counts_[rank] = {std::min(bytes_done, bytes_total), bytes_total};
  if (Clock::now() - shown_ >= (terminal_ ? kBarInterval : kLineInterval)) show(false);
}

void LoadDisplay::finish() { show(true); }

void LoadDisplay::show(bool last) {
  shown_ = Clock::now();
  uint64_t done = 0;
  uint64_t total = 0;
  for (const auto& [rank, count] : counts_) {
    done += count.done;
    total += count.total;
  }
  const double seconds = std::chrono::duration<double>(shown_ - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
  // Read is not ready: the last per cent is shown when all workers have said so.
  const int percent = last ? 100 : std::min(99, static_cast<int>(100 * share));
  std::string line = "loading " +
                     std::string(percent < 10    ? "  "
                                 : percent < 100 ? " "
                                                 : "") +
                     std::to_string(percent) + " % ";
  if (terminal_) {
    const int filled = kBarWidth * percent / 100;
    line += "[" + std::string(static_cast<size_t>(filled), '=') +
            std::string(static_cast<size_t>(kBarWidth - filled), ' ') + "] ";
  }
  line += format_bytes(done) + " of " + format_bytes(total) + ", " +
          format_bytes(static_cast<uint64_t>(rate)) + "/s";
  char time[48];
  if (last) {
    std::snprintf(time, sizeof time, ", %.1f s", seconds);
  } else {
    const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
    std::snprintf(time, sizeof time, ", %.0f s left", left);
  }
  std::fprintf(stderr, "%s%s%s%s", terminal_ ? "\r\033[K" : "", line.c_str(), time,
               terminal_ && !last ? "" : "\n");
}

}  // namespace trireme
