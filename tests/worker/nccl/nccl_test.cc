// SPDX-License-Identifier: Apache-2.0
// NCCL's communicators over a fake library and an emulated GPU: ranks are threads.
#include "worker/comm/nccl.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <thread>

#include "tests/support/cuda_emulation/memory.h"
#include "tests/worker/nccl/ranks.h"
#include "worker/comm/socket.h"

namespace trireme {
namespace {

class NcclTest : public testing::TestWithParam<int> {};

TEST_P(NcclTest, DoesAllThatACommunicatorDoes) {
  run_ranks(GetParam(), [](NcclMember m) {
    check_all_reduces(m.group);
    check_rows_alone(m.group);
    check_gathers(m.group);
    check_broadcasts(m.group);
    check_ordered_sends(m.group, 1);
    check_ordered_sends(m.group, 5000);
    m.group.settle();
  });
}
INSTANTIATE_TEST_SUITE_P(Sizes, NcclTest, testing::Range(2, 5));

TEST(Nccl, SaysWhyItCannotBeUsed) {
  EXPECT_NE(find_nccl("libno-such.so").reason.find("libno-such.so"), std::string::npos);
  EXPECT_NE(find_nccl("libm.so.6").reason.find("ncclGetVersion"), std::string::npos);
  fake().set_version(21300);
  const NcclVersion old = find_nccl(kFake);
  EXPECT_EQ(old.number, 0);
  EXPECT_NE(old.reason.find("21300"), std::string::npos) << old.reason;
  fake().set_version(22809);
  EXPECT_EQ(find_nccl(kFake).number, 22809);
  const auto backend = make_backend({.device = "cuda"});
  const Cancellation never;
  EXPECT_EQ(
      code_of([&] { make_nccl(*backend, work_of(*backend, never), {"libno-such.so"}); }, "install"),
      Code::kFailedPrecondition);
}

TEST(Nccl, RefusesAKeyOfAnotherLength) {
  run_ranks(2, [](NcclMember m) {
    const std::vector<int> ranks = {1, 2};
    EXPECT_EQ(code_of([&] { m.nccl.make_group(ranks, 0, "short"); }, "5 bytes"),
              Code::kInvalidArgument);
  });
}

// A rank that never joins, and one that joins but never takes part.
TEST(Nccl, CancelEndsEveryWait) {
  const auto backend = make_backend({.device = "cuda"});
  Cancellation cancellation;
  const auto alone = make_nccl(*backend, work_of(*backend, cancellation), kOptions);
  const std::vector<int> ranks = {1, 2};
  const int before = fake().num_aborts();
  EXPECT_LE(cancel_delay(cancellation, [&] { alone->make_group(ranks, 0, alone->make_key()); }),
            kCancelDelayMax);
  EXPECT_EQ(fake().num_aborts(), before + 1);

  run_ranks(3, [](NcclMember m) {
    if (m.group.rank() == 2) return;
    Floats x(1000);
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.all_reduce_sum(tensor(x, 1)); }),
              kCancelDelayMax);
  });
  run_ranks(2, [](NcclMember m) {
    Floats x(10);
    if (m.group.rank() == 0) return;
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.recv(tensor(x, 1), 0); }),
              kCancelDelayMax);
  });
}

// What was queued hangs on the device: all groups of the rank are aborted.
TEST(Nccl, CancelEndsTheWaitForTheDevice) {
  run_ranks(2, [](NcclMember m) {
    Floats x(10);
    m.group.all_reduce_sum(tensor(x, 1));
    if (m.group.rank() == 1) return;
    cuda::emulation::stall_events(true);
    const int before = fake().num_aborts();
    EXPECT_LE(cancel_delay(m.cancellation, [&] { m.group.settle(); }), kCancelDelayMax);
    cuda::emulation::stall_events(false);
    EXPECT_GE(fake().num_aborts(), before + 1);
  });
}

TEST(Nccl, AnErrorOfTheNetworkEndsTheWait) {
  constexpr int kRemoteError = 6;  // ncclRemoteError
  run_ranks(2, [](NcclMember m) {
    if (m.group.rank() == 1) return;
    std::jthread other([&] {
      while (m.progress.waiting_for().empty()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      fake().set_error(kRemoteError);
    });
    Floats x(10);
    EXPECT_EQ(code_of([&] { m.group.recv(tensor(x, 1), 1); }, "with NCCL"), Code::kUnavailable);
    fake().set_error(0);
    const std::vector<int32_t> blamed = m.progress.waiting_for();
    EXPECT_EQ(blamed, std::vector<int32_t>{2}) << "it says for whom it waited";
  });
}

// ---- NCCL's own watch over the job ----

constexpr const char* kFaults =
    "Job summary\n===========\nErrors\n======\n\n#0-0 (cf26) INCOMPLETE\n"
    "  Missing communicator data from 1 rank\n"
    "  Rank 1 -- GPU 1 managed by process 4711 on node 10.0.0.2\n";

// Answers one client with that.
class RasServer {
 public:
  RasServer() : listener_(listen_for_workers(true)) {
    thread_ = std::jthread([this] {
      if (!ready(listener_)) return;
      const FileDescriptor connection = accept_connection(listener_);
      for (const std::string answer : {"SERVER PROTOCOL 2\n", "OK\n", kFaults}) {
        std::array<char, 64> wish;
        if (!ready(connection) || recv(connection.get(), wish.data(), wish.size(), 0) <= 0) return;
        send(connection.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
      }
    });
  }
  NcclOptions options() const {
    NcclOptions options = kOptions;
    options.ras = {{"127.0.0.1"}, port_of(listener_)};
    return options;
  }

 private:
  static bool ready(const FileDescriptor& fd) {
    return wait_ready(fd.get(), POLLIN,
                      std::chrono::steady_clock::now() + std::chrono::seconds(20));
  }
  const FileDescriptor listener_;
  std::jthread thread_;
};

TEST(NcclRas, WhatItFindsIsPartOfTheError) {
  const RasServer server;
  run_ranks(
      2,
      [](NcclMember m) {
        if (m.group.rank() == 1) return;
        constexpr int kRemoteError = 6;  // ncclRemoteError
        fake().set_error(kRemoteError);
        Floats x(10);
        EXPECT_EQ(code_of([&] { m.group.recv(tensor(x, 1), 1); },
                          "its RAS says: #0-0 (cf26) INCOMPLETE; Missing communicator data from 1 "
                          "rank; Rank 1 -- GPU 1 managed by process 4711 on node 10.0.0.2"),
                  Code::kUnavailable);
        fake().set_error(0);
      },
      server.options());
}

// A rank that never takes part: who waits for it says so, beside the wait, and what RAS says.
TEST(NcclRas, AWaitThatHangsIsTold) {
  const RasServer server;
  NcclOptions options = server.options();
  options.hang = std::chrono::milliseconds(100);
  testing::internal::CaptureStderr();
  run_ranks(
      2,
      [](NcclMember m) {
        if (m.group.rank() == 1) return;
        m.progress.begin_batch(1);
        std::jthread end([&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(1500));
          m.cancellation.cancel("its peer is stuck");
        });
        Floats x(10);
        EXPECT_EQ(code_of([&] { m.group.recv(tensor(x, 1), 1); }, "stuck"), Code::kCancelled);
      },
      options);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("the GPU waits for rank 2"), std::string::npos) << log;
  EXPECT_EQ(log.find("waits for"), log.rfind("waits for")) << "it is told once";
  EXPECT_NE(log.find("managed by process 4711"), std::string::npos) << log;
}

// While ranks load a wait may be long, and is no news.
TEST(NcclRas, AWaitBeforeTheFirstStepIsNoHang) {
  NcclOptions options = kOptions;
  options.hang = std::chrono::milliseconds(10);
  testing::internal::CaptureStderr();
  run_ranks(
      2,
      [](NcclMember m) {
        Floats x(10);
        if (m.group.rank() == 1) {
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          m.group.send(tensor(x, 1), 0);
        } else {
          m.group.recv(tensor(x, 1), 1);
        }
        m.group.settle();
      },
      options);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace trireme
