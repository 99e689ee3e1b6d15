// SPDX-License-Identifier: Apache-2.0
#include "launch/bench.h"

#include <unistd.h>

#include <chrono>
#include <iostream>
#include <optional>
#include <string>

#include "kernels/base/error.h"
#include "launch/bench_load.h"
#include "launch/bench_report.h"
#include "launch/stop_signal.h"
#include "launch/text_table.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBarInterval{200};
constexpr std::chrono::seconds kLineInterval{10};

// One line that changes on a terminal, else a line every ten seconds.
class ProgressLine {
 public:
  ProgressLine(std::string what, int32_t requests)
      : what_(std::move(what)),
        requests_(requests),
        terminal_(isatty(STDERR_FILENO) == 1),
        shown_(began_) {}
  ~ProgressLine() {
    if (terminal_) std::cerr << "\r\033[K" << std::flush;
  }
  ProgressLine(const ProgressLine&) = delete;

  void show(const BenchProgress& progress) {
    const auto now = Clock::now();
    if (now - shown_ < (terminal_ ? Clock::duration(kBarInterval) : Clock::duration(kLineInterval)))
      return;
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - began_).count();
    const std::string line = what_ + ": " + std::to_string(progress.ended) + " of " +
                             std::to_string(requests_) + " requests, " +
                             std::to_string(progress.under_way) + " under way, " +
                             three_figures(progress.output_tokens / seconds) + " tokens/s" +
                             time_left(progress, seconds);
    std::cerr << (terminal_ ? "\r\033[K" : "") << line << (terminal_ ? "" : "\n") << std::flush;
  }

 private:
  std::string time_left(const BenchProgress& progress, double seconds) const {
    if (progress.ended == 0) return "";
    return format_number(", %.0f s left", seconds / progress.ended * (requests_ - progress.ended));
  }

  const std::string what_;
  const int32_t requests_;
  const bool terminal_;
  const Clock::time_point began_ = Clock::now();
  Clock::time_point shown_;
};

void throw_if_spoilt(const BenchReport& report, const BenchFlags& flags, bool stopped) {
  const std::string all =
      std::to_string(flags.requests) + (flags.requests == 1 ? " request" : " requests");
  const int64_t unsent = flags.requests - report.sent;
  if (stopped) {
    throw Error(Code::kCancelled, "stopped by a signal when " + std::to_string(report.answered) +
                                      " of " + all + " were answered");
  }
  if (report.failed == 0 && unsent == 0) return;
  std::string what = std::to_string(report.failed) + " of " + all + " failed";
  if (unsent > 0) {
    what += ", and " + std::to_string(unsent) + " were not sent, since the server has gone";
  }
  if (report.failed > 0) what += ": " + report.failures.begin()->first;
  throw Error(Code::kUnavailable, what);
}

}  // namespace

int bench(const BenchFlags& flags) {
  StopSignal stop;
  BenchReport report;
  bool stopped = false;
  {
    std::optional<ProgressLine> line;
    line.emplace("warm-up", 1);
    BenchLoad load(flags, stop, [&](const BenchProgress& progress) { line->show(progress); });
    load.warm_up();
    line.emplace("measuring", flags.requests);
    report = summarise(load.run(), flags);
    stopped = load.stopped();
  }
  std::cout << (flags.json ? report_json(report, flags) + "\n" : report_tables(report, flags))
            << std::flush;
  if (!std::cout) throw Error(Code::kInternal, "cannot write the report to stdout");
  throw_if_spoilt(report, flags, stopped);
  return 0;
}

}  // namespace trireme
