// SPDX-License-Identifier: Apache-2.0
#include "launch/job_end.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <ctime>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr milliseconds kAnswerTime{5000};
constexpr size_t kMaxOutput = 4096;

// Its standard output goes to `out`; nothing else of ours does.
std::optional<pid_t> spawn(const std::vector<std::string>& command, int out) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, out, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // This process blocks the signals that would end a child.
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = 0;
  const int problem = posix_spawnp(&pid, argv.front(), &files, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (problem != 0) return std::nullopt;
  return pid;
}

// Until its end, or the deadline. False: the deadline came first.
bool read_all(int file, std::string& text, steady_clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
    pollfd waited{file, POLLIN, 0};
    if (left.count() <= 0 || poll(&waited, 1, static_cast<int>(left.count())) == 0) return false;
    char part[512];
    const ssize_t count = read(file, part, sizeof part);
    if (count < 0) continue;
    if (count == 0) return true;
    if (text.size() < kMaxOutput) text.append(part, static_cast<size_t>(count));
  }
}

// Whether it ended well by the deadline; killed if not.
bool reap(pid_t pid, bool kill_it, steady_clock::time_point deadline) {
  int status = 0;
  while (!kill_it && steady_clock::now() < deadline) {
    if (waitpid(pid, &status, WNOHANG) == pid) return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    poll(nullptr, 0, 2);
  }
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
  return false;
}

}  // namespace

std::optional<std::string> output_of(const std::vector<std::string>& command,
                                     milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  const std::optional<pid_t> pid = spawn(command, ends[1]);
  close(ends[1]);
  std::string text;
  const bool whole = pid && read_all(ends[0], text, deadline);
  close(ends[0]);
  if (!pid || !reap(*pid, !whole, deadline)) return std::nullopt;
  return text;
}

std::optional<seconds> parse_time_left(const std::string& text) {
  const std::string line = text.substr(0, text.find_first_of(" \t\r\n"));
  const size_t dash = line.find('-');
  const char* at = line.data();
  const char* const end = at + line.size();
  std::vector<int64_t> numbers;  // [days,] hours, minutes, seconds
  for (;;) {
    int64_t number = 0;
    const auto [stop, error] = std::from_chars(at, end, number);
    if (error != std::errc() || number < 0 || number > 1000000) return std::nullopt;
    numbers.push_back(number);
    if (stop == end) break;
    const bool after_days = dash != std::string::npos && numbers.size() == 1;
    if (*stop != (after_days ? '-' : ':')) return std::nullopt;
    at = stop + 1;
  }
  if (dash != std::string::npos ? numbers.size() != 4 : numbers.size() > 3) return std::nullopt;
  constexpr int64_t kUnits[] = {86400, 3600, 60, 1};
  int64_t total = 0;
  for (size_t i = 0; i < numbers.size(); ++i) total += numbers[i] * kUnits[4 - numbers.size() + i];
  return seconds(total);
}

std::optional<WallClock::time_point> find_job_end(const LaunchInfo& launch) {
  if (launch.slurm_job_id.empty()) return launch.slurm_job_end;
  const auto answer = output_of(
      {"squeue", "--noheader", "--jobs", launch.slurm_job_id, "--format", "%L"}, kAnswerTime);
  if (answer) {
    if (const auto left = parse_time_left(*answer)) return WallClock::now() + *left;
    // The limit may have been taken away since the environment was made.
    if (answer->starts_with("UNLIMITED")) return std::nullopt;
  }
  return launch.slurm_job_end;
}

std::string utc(WallClock::time_point time) {
  const std::time_t seconds_since = WallClock::to_time_t(time);
  tm fields{};
  gmtime_r(&seconds_since, &fields);
  char text[32];
  strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &fields);
  return text;
}

}  // namespace trireme
