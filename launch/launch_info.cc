// SPDX-License-Identifier: Apache-2.0
// What the environment says: which rank this is, of how many, when Slurm ends the job, where the
// user's caches are, and what of NCCL is set.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "launch/options.h"
#include "topology/nccl_settings.h"

namespace trireme {
namespace {

bool read_number(std::string_view text, int& value) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && stop == text.data() + text.size();
}

// One launcher's way to say who we are; nullopt: it did not start us.
std::optional<LaunchInfo> launched_by(const char* size_name, const char* rank_name) {
  const char* const size = std::getenv(size_name);
  const char* const rank = std::getenv(rank_name);
  if (size == nullptr || rank == nullptr) return std::nullopt;
  LaunchInfo info;
  info.under_launcher = true;
  if (!read_number(size, info.num_ranks) || !read_number(rank, info.rank) || info.rank < 0 ||
      info.rank >= info.num_ranks) {
    throw Error(Code::kInvalidArgument, std::string("cannot tell which rank this is: found ") +
                                            size_name + "=" + size + " and " + rank_name + "=" +
                                            rank + "; start it by mpirun or srun, or unset them");
  }
  return info;
}

// What Slurm's environment tells of the job's end; what it does not tell, squeue will.
void read_slurm_job(LaunchInfo& info) {
  const char* const id = std::getenv("SLURM_JOB_ID");
  if (id != nullptr &&
      std::string_view(id).find_first_not_of("0123456789_") == std::string_view::npos) {
    info.slurm_job_id = id;
  }
  const char* const end = std::getenv("SLURM_JOB_END_TIME");
  if (end == nullptr) return;
  const std::string_view text(end);
  int64_t seconds = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  constexpr int64_t kMost = int64_t{1} << 33;  // some centuries on; Slurm's "no end" is beyond
  if (error != std::errc() || stop != text.data() + text.size()) return;
  if (seconds <= 0 || seconds > kMost) return;
  info.slurm_job_end = std::chrono::system_clock::time_point(std::chrono::seconds(seconds));
}

std::string cache_folder() {
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return cache;
  const char* const home = std::getenv("HOME");
  return home != nullptr && home[0] == '/' ? std::string(home) + "/.cache" : "";
}

// As NCCL itself has it: the environment wins, then the user's file, then the machine's; a line of
// a file is NAME=VALUE as it stands.
void read_nccl_file(const std::string& path, std::map<std::string, std::string>& variables) {
  constexpr int kMostLines = 1000;
  std::ifstream file(path);
  std::string line;
  for (int lines = 0; lines < kMostLines && std::getline(file, line); ++lines) {
    if (line.ends_with('\r')) line.pop_back();
    const size_t equals = line.find('=');
    if (line.starts_with('#') || equals == line.npos) continue;
    const std::string name = line.substr(0, equals);
    if (std::find(kNcclVariables.begin(), kNcclVariables.end(), name) == kNcclVariables.end()) {
      continue;
    }
    variables.emplace(name, printable(line.substr(equals + 1)));
  }
}

std::map<std::string, std::string> nccl_variables() {
  std::map<std::string, std::string> variables;
  for (const char* const name : kNcclVariables) {
    const char* const value = std::getenv(name);
    if (value != nullptr) variables.emplace(name, printable(value));
  }
  const char* const file = std::getenv("NCCL_CONF_FILE");
  const char* const home = std::getenv("HOME");
  if (file != nullptr && *file != '\0') {
    read_nccl_file(file, variables);
  } else if (home != nullptr) {
    read_nccl_file(std::string(home) + "/.nccl.conf", variables);
  }
  read_nccl_file("/etc/nccl.conf", variables);
  return variables;
}

LaunchInfo read_ranks() {
  if (const auto info = launched_by("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")) return *info;
  if (const auto info = launched_by("PMI_SIZE", "PMI_RANK")) return *info;
  // Slurm sets its variables for batch scripts too, whose commands are not started by srun: only a
  // PMIx rank says that this process is a task of a step.
  if (std::getenv("PMIX_RANK") != nullptr) {
    if (const auto info = launched_by("SLURM_NTASKS", "SLURM_PROCID")) return *info;
  }
  // srun sets the number for its tasks, and for no batch script. Task 0 may be a user's own shell,
  // by srun --pty: it is told by the others.
  LaunchInfo info;
  int task = 0;
  const char* const number = std::getenv("SLURM_PROCID");
  const char* const tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (number == nullptr || !read_number(number, task) || task == 0) return info;
  if (tasks == nullptr || !read_number(tasks, info.separate_tasks)) info.separate_tasks = 1;
  return info;
}

}  // namespace

void require_one_job(const LaunchInfo& launch) {
  if (launch.separate_tasks <= 1) return;
  throw Error(Code::kInvalidArgument,
              "cannot start: srun started " + std::to_string(launch.separate_tasks) +
                  " tasks without PMIx, so each would be a job of its own; start them by srun "
                  "--mpi=pmix (srun --mpi=list shows whether it is there), by mpirun, or leave it "
                  "to launch/trireme-run");
}

LaunchInfo read_launch_info() {
  LaunchInfo info = read_ranks();
  read_slurm_job(info);
  info.cache_folder = cache_folder();
  info.nccl_variables = nccl_variables();
  return info;
}

}  // namespace trireme
