// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/nccl_ras.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <functional>
#include <string>
#include <thread>

#include "worker/comm/socket.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

TimePoint soon() { return steady_clock::now() + milliseconds(5000); }

// One connection to a server of its own, which `serve` answers.
class RasServer {
 public:
  explicit RasServer(std::function<void(int fd)> serve) : listener_(listen_for_workers(true)) {
    thread_ = std::jthread([this, serve] {
      if (!wait_ready(listener_.get(), POLLIN, soon())) return;
      const FileDescriptor connection = accept_connection(listener_);
      serve(connection.get());
    });
  }
  uint16_t port() const { return port_of(listener_); }

 private:
  const FileDescriptor listener_;
  std::jthread thread_;
};

std::string hear(int fd) {
  char bytes[256] = {};
  if (!wait_ready(fd, POLLIN, soon())) return "";
  const ssize_t count = recv(fd, bytes, sizeof(bytes), 0);
  return std::string(bytes, count > 0 ? static_cast<size_t>(count) : 0);
}

void say(int fd, const std::string& text) { send(fd, text.data(), text.size(), MSG_NOSIGNAL); }

TEST(NcclRas, GivesTheReportFitForALog) {
  std::string greeting, wish;
  std::string report;
  {
    RasServer server([&](int fd) {
      greeting = hear(fd);
      say(fd, "SERVER PROTOCOL 2\n");
      wish = hear(fd);
      say(fd, "NCCL version 2.28.9\n\nGroup 1:\x1b[31m 2 ranks\n");
      say(fd, "  rank 1 is not responding\n");
    });
    report = read_nccl_ras(server.port(), milliseconds(5000));
  }
  EXPECT_EQ(greeting, "CLIENT PROTOCOL 2\n");
  EXPECT_EQ(wish, "STATUS\n");
  EXPECT_EQ(report, "NCCL version 2.28.9\nGroup 1:?[31m 2 ranks\n  rank 1 is not responding");
}

TEST(NcclRas, IsSilentWhereNobodyAnswers) {
  uint16_t closed = 0;
  { closed = port_of(listen_for_workers(true)); }
  EXPECT_EQ(read_nccl_ras(closed, milliseconds(1000)), "");

  RasServer stranger([](int fd) { say(fd, "SSH-2.0-OpenSSH\r\n"); });
  EXPECT_EQ(read_nccl_ras(stranger.port(), milliseconds(1000)), "");

  const auto begin = steady_clock::now();
  RasServer silent([](int fd) { hear(fd), hear(fd); });
  EXPECT_EQ(read_nccl_ras(silent.port(), milliseconds(100)), "");
  EXPECT_LT(steady_clock::now() - begin, milliseconds(3000));
}

// A server that does not stop is heard for 8 KiB.
TEST(NcclRas, IsBounded) {
  RasServer server([](int fd) {
    hear(fd);
    say(fd, "SERVER PROTOCOL 2\n");
    hear(fd);
    const std::string line(1000, 'x');
    while (wait_ready(fd, POLLOUT, soon()) &&
           send(fd, line.data(), line.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  const std::string report = read_nccl_ras(server.port(), milliseconds(5000));
  EXPECT_GT(report.size(), 4000u);
  EXPECT_LE(report.size(), 8u << 10);
}

}  // namespace
}  // namespace trireme
