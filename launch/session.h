// SPDX-License-Identifier: Apache-2.0
// A served model from its first request to its last: waits for a reason to end, finds the right
// end for it, and reports what was cut.
#pragma once

#include <atomic>
#include <chrono>
#include <optional>
#include <string>

#include "coordinator/engine.h"
#include "coordinator/service.h"
#include "launch/job_end.h"
#include "launch/options.h"
#include "launch/status_file.h"
#include "launch/stop_signal.h"

namespace trireme {

// Main thread. Its end ends the engine and every stream, however it comes.
class Session {
 public:
  // drain_asked: a client asked for the end; set before stop is poked. All must outlive this.
  Session(const Options& options, StopSignal& stop, const std::atomic<bool>& drain_asked,
          Service& service, Engine& engine, StatusFile& status_file);
  ~Session();
  Session(const Session&) = delete;

  // Returns what came of it when the session was asked to end; throws kUnavailable when it cannot
  // go on.
  std::string run();

 private:
  // How long to sleep at most: until the drain before the job's end.
  std::chrono::milliseconds until_drain() const;
  // True when it is time for it; asks Slurm again, whose limit may have been changed.
  bool job_ends_soon();
  void look_for_job_end();
  // Notes the ranks that died. Throws where no replica is left.
  void look_for_deaths();
  // A signal came. Throws if a death is its cause.
  void wait_for_explanation();
  std::string drain(const std::string& why, std::chrono::milliseconds limit);
  [[noreturn]] void give_up(const std::string& why);

  const LaunchInfo launch_;
  const std::optional<std::chrono::milliseconds> drain_limit_;
  const std::chrono::milliseconds drain_before_;
  StopSignal& stop_;
  const std::atomic<bool>& drain_asked_;
  Service& service_;
  Engine& engine_;
  StatusFile& status_file_;
  std::optional<WallClock::time_point> job_end_;
  std::string end_reason_ = "the server is ending; ask another one";
  int num_dead_ = 0;
  std::string death_;  // the latest
  std::optional<Clock::time_point> death_time_;
  bool hurry_ = false;
};

}  // namespace trireme
