// SPDX-License-Identifier: Apache-2.0
#include "coordinator/private_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"

namespace trireme {

namespace {

// Writes a new file; false: errno says why not.
bool write_new_file(const std::string& path, std::string_view text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error = errno;
      close(fd);
      errno = error;
      return false;
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  // A file system of the network says here that it has no room left.
  return close(fd) == 0;
}

// Beside the file that it is to become.
std::string temporary_of(const std::string& path) { return path + "." + std::to_string(getpid()); }

[[noreturn]] void cannot_write(const std::string& path, const std::string& flag) {
  const int error = errno;
  unlink(temporary_of(path).c_str());
  throw Error(Code::kFailedPrecondition,
              "cannot write " + flag + " " + path + ": " + std::strerror(error));
}

}  // namespace

void write_private_file(const std::string& path, const std::string& text, const std::string& flag) {
  const std::string temporary = temporary_of(path);
  unlink(temporary.c_str());
  const bool written = write_new_file(temporary, text);
  if (!written || rename(temporary.c_str(), path.c_str()) != 0) cannot_write(path, flag);
}

void require_writable(const std::string& path, const std::string& flag) {
  const std::string temporary = temporary_of(path);
  unlink(temporary.c_str());
  if (!write_new_file(temporary, "")) cannot_write(path, flag);
  unlink(temporary.c_str());
}

std::string read_flag_file(const std::string& path, const std::string& flag) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  // Fails for nothing at all, and where reading does: a folder can be opened.
  if (file) text << file.rdbuf();
  if (file && !text.fail()) return std::move(text).str();
  throw Error(Code::kNotFound, "cannot read " + flag + " " + path + ": " +
                                   (errno == 0 ? "it is empty" : std::strerror(errno)));
}

}  // namespace trireme
