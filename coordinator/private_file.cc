// SPDX-License-Identifier: Apache-2.0
#include "coordinator/private_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "kernels/base/error.h"

namespace trireme {

void write_private_file(const std::string& path, const std::string& text, const std::string& flag) {
  const std::string temporary = path + "." + std::to_string(getpid());
  unlink(temporary.c_str());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  const bool written =
      fd >= 0 && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  int error = errno;
  if (fd >= 0) close(fd);
  if (written && rename(temporary.c_str(), path.c_str()) == 0) return;
  if (written) error = errno;
  unlink(temporary.c_str());
  throw Error(Code::kFailedPrecondition,
              "cannot write " + flag + " " + path + ": " + std::strerror(error));
}

}  // namespace trireme
