// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/nccl_ras.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

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
  NcclRasAddress address() const { return {{"127.0.0.1"}, port_of(listener_)}; }

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
  std::vector<std::string> heard;
  std::string report;
  {
    RasServer server([&](int fd) {
      heard.push_back(hear(fd));
      say(fd, "SERVER PROTOCOL 2\n");
      heard.push_back(hear(fd));
      say(fd, "OK\n");
      heard.push_back(hear(fd));
      say(fd, "NCCL version 2.28.9\n\nGroup 1:\x1b[31m 2 ranks\n");
      say(fd, "  rank 1 is not responding\n");
    });
    report = read_nccl_ras(server.address(), milliseconds(5000));
  }
  // Shorter than ours: else who does not answer would keep the rest from us.
  EXPECT_EQ(heard, (std::vector<std::string>{"CLIENT PROTOCOL 2\n", "TIMEOUT 2\n", "STATUS\n"}));
  EXPECT_EQ(report, "NCCL version 2.28.9\nGroup 1:?[31m 2 ranks\n  rank 1 is not responding");
}

TEST(NcclRas, IsSilentWhereNobodyAnswers) {
  uint16_t closed = 0;
  { closed = port_of(listen_for_workers(true)); }
  EXPECT_EQ(read_nccl_ras({{"127.0.0.1", "::1"}, closed}, milliseconds(1000)), "");
  EXPECT_EQ(read_nccl_ras({{}, closed}, milliseconds(1000)), "") << "it is off";

  RasServer stranger([](int fd) { say(fd, "SSH-2.0-OpenSSH\r\n"); });
  EXPECT_EQ(read_nccl_ras(stranger.address(), milliseconds(1000)), "");

  const auto begin = steady_clock::now();
  RasServer silent([](int fd) { hear(fd), hear(fd); });
  EXPECT_EQ(read_nccl_ras(silent.address(), milliseconds(100)), "");
  EXPECT_LT(steady_clock::now() - begin, milliseconds(3000));
}

TEST(NcclRas, GivesUpWhenItIsTold) {
  RasServer silent([](int fd) { hear(fd), hear(fd); });
  const auto begin = steady_clock::now();
  EXPECT_EQ(read_nccl_ras(silent.address(), milliseconds(60000),
                          [&] { return steady_clock::now() - begin > milliseconds(50); }),
            "");
  EXPECT_LT(steady_clock::now() - begin, milliseconds(10000));
}

// A server that does not stop is heard for 8 KiB.
TEST(NcclRas, IsBounded) {
  RasServer server([](int fd) {
    hear(fd);
    say(fd, "SERVER PROTOCOL 2\n");
    hear(fd);
    say(fd, "OK\n");
    hear(fd);
    const std::string line(1000, 'x');
    while (wait_ready(fd, POLLOUT, soon()) &&
           send(fd, line.data(), line.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  const std::string report = read_nccl_ras(server.address(), milliseconds(5000));
  EXPECT_GT(report.size(), 4000u);
  EXPECT_LE(report.size(), 8u << 10);
}

TEST(NcclRas, IsWhereItsVariablesSay) {
  const auto address = [](const std::string& addr, const std::string& enable = "1") {
    google::protobuf::Map<std::string, std::string> variables;
    variables["NCCL_RAS_ADDR"] = addr;
    variables["NCCL_RAS_ENABLE"] = enable;
    return nccl_ras_address(variables);
  };
  const std::vector<std::string> local = {"127.0.0.1", "::1"};
  EXPECT_EQ(nccl_ras_address({}).hosts, local);
  EXPECT_EQ(nccl_ras_address({}).port, 28028);
  EXPECT_EQ(address("localhost:7").hosts, local);
  EXPECT_EQ(address("localhost:7").port, 7);
  EXPECT_EQ(address("10.0.0.1:7").hosts, std::vector<std::string>{"10.0.0.1"});
  EXPECT_EQ(address("[fe80::1]:7").hosts, std::vector<std::string>{"fe80::1"});
  for (const char* const wrong : {"node7:7", "localhost", "localhost:", "10.0.0.1:70000", ":7"}) {
    EXPECT_TRUE(address(wrong).hosts.empty()) << wrong;
  }
  EXPECT_TRUE(address("localhost:7", "0").hosts.empty());
}

TEST(NcclRas, FaultsAreWhatItFindsWrong) {
  EXPECT_EQ(nccl_ras_faults("Job summary\n===========\n  Nodes  Processes\n"), "");
  EXPECT_EQ(nccl_ras_faults("Group 1\nErrors\n======\nWarnings\n========\n"), "") << "all is well";
  EXPECT_EQ(
      nccl_ras_faults("Rank 9\nErrors\n======\n#0-0 (cf26) INCOMPLETE\n  Missing communicator "
                      "data from 1 rank\n  Rank 1 -- GPU 0 managed by process 7 on node "
                      "h\nWarnings\n========\n#0-0 (cf26) MISMATCH\n"),
      "#0-0 (cf26) INCOMPLETE; Missing communicator data from 1 rank; Rank 1 -- GPU 0 managed "
      "by process 7 on node h; #0-0 (cf26) MISMATCH");
  EXPECT_EQ(nccl_ras_faults("Errors\n" + std::string(3000, 'x')).size(), 1000u);
}

}  // namespace
}  // namespace trireme
