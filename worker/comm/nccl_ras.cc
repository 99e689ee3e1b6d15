// SPDX-License-Identifier: Apache-2.0
// The protocol is lines of text: each side tells its version, the client what it wants, and the
// server answers until it closes.
#include "worker/comm/nccl_ras.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "kernels/base/printable.h"
#include "worker/comm/socket.h"

namespace trireme {
namespace {

constexpr size_t kMostBytes = 8 << 10;

bool send_line(const FileDescriptor& connection, const std::string& line, TimePoint deadline) {
  return wait_ready(connection.get(), POLLOUT, deadline) &&
         send(connection.get(), line.data(), line.size(), MSG_NOSIGNAL) ==
             static_cast<ssize_t>(line.size());
}

// Appends what comes until `text` has `lines` ends of lines, or the server closes. False when the
// deadline comes first.
bool receive(const FileDescriptor& connection, size_t lines, TimePoint deadline,
             std::string& text) {
  size_t ends = 0;
  while (ends < lines && text.size() < kMostBytes) {
    if (!wait_ready(connection.get(), POLLIN, deadline)) return false;
    std::array<char, 1024> bytes;
    const ssize_t count = recv(connection.get(), bytes.data(), bytes.size(), 0);
    if (count <= 0) return count == 0;
    for (ssize_t i = 0; i < count; ++i) ends += bytes[static_cast<size_t>(i)] == '\n' ? 1 : 0;
    text.append(bytes.data(), static_cast<size_t>(count));
  }
  return true;
}

}  // namespace

std::string read_nccl_ras(uint16_t port, std::chrono::milliseconds timeout) {
  const TimePoint deadline = std::chrono::steady_clock::now() + timeout;
  const FileDescriptor connection = connect_socket("127.0.0.1", port, deadline);
  std::string greeting;
  if (!connection || !send_line(connection, "CLIENT PROTOCOL 2\n", deadline) ||
      !receive(connection, 1, deadline, greeting) || !greeting.starts_with("SERVER PROTOCOL ") ||
      !send_line(connection, "STATUS\n", deadline)) {
    return "";
  }
  std::string report;
  receive(connection, kMostBytes, deadline, report);  // what came in time is better than nothing
  report.resize(std::min(report.size(), kMostBytes));
  std::string lines;
  for (size_t begin = 0; begin < report.size();) {
    const size_t end = std::min(report.find('\n', begin), report.size());
    const std::string line = printable(report.substr(begin, end - begin));
    if (!line.empty()) lines += (lines.empty() ? "" : "\n") + line;
    begin = end + 1;
  }
  return lines;
}

}  // namespace trireme
