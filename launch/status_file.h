// SPDX-License-Identifier: Apache-2.0
// What rank 0 tells whoever started it, in --status_file: the launcher script judges the end of the
// job by it, since mpirun's own status says little once a rank has died.
//
// JSON, a field a line, mode 0600, replaced whole at each change:
//   pid, host        of rank 0
//   state            starting, loading, serving, draining, ended
//   address          of the client port; "" until bound
//   exit_status      null until ended
//   reason           of draining and ended
//   first_failure    the line of the log, or ""
//   started, updated Unix seconds
// Ended is written just before MPI's own end, which can take a while. When rank 0 is killed the
// last state stays and pid is gone. With bad options no file is written: remove an old one before
// the start.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace trireme {

// One thread uses it: rank 0's main thread.
class StatusFile {
 public:
  enum class State { kStarting, kLoading, kServing, kDraining, kEnded };

  // Writes the first state, kStarting. Empty: there is no file, and nothing is written. Throws
  // kFailedPrecondition where it cannot be written; later such troubles are only logged.
  explicit StatusFile(std::string path);

  // reason: why this state, for people; of kDraining and kEnded.
  void set_state(State state, const std::string& reason = "");
  void set_address(const std::string& address);
  // The line that names the rank which failed first. The first one stays.
  void set_first_failure(const std::string& line);
  void end(int exit_status, const std::string& reason);

 private:
  std::string to_json() const;
  void update();

  const std::string path_;
  const double started_;
  State state_ = State::kStarting;
  std::string reason_;
  std::string address_;
  std::string first_failure_;
  std::optional<int> exit_status_;
};

}  // namespace trireme
