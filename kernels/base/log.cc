// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/log.h"

#include <sys/time.h>
#include <unistd.h>

#include <ctime>
#include <string>

namespace trireme {
namespace {

int log_rank = -1;

void write_line(char level, std::string_view text, const std::source_location& where) {
  timeval now{};
  gettimeofday(&now, nullptr);
  tm local{};
  localtime_r(&now.tv_sec, &local);
  char stamp[32];
  const size_t used = strftime(stamp, sizeof stamp, "%H:%M:%S", &local);
  snprintf(stamp + used, sizeof stamp - used, ".%03d", static_cast<int>(now.tv_usec / 1000));

  std::string_view file = where.file_name();
  file = file.substr(file.find_last_of('/') + 1);
  std::string line{level, ' '};
  line += stamp;
  if (log_rank >= 0) line += " rank " + std::to_string(log_rank);
  line += ' ';
  line += file;
  line += ':' + std::to_string(where.line()) + ' ';
  line += text;
  line += '\n';
  // A log line that cannot be written has nowhere to be reported.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

void set_log_rank(int rank) { log_rank = rank; }
void log_info(std::string_view text, std::source_location where) { write_line('I', text, where); }
void log_warn(std::string_view text, std::source_location where) { write_line('W', text, where); }
void log_error(std::string_view text, std::source_location where) { write_line('E', text, where); }

}  // namespace trireme
