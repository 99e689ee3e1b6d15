// SPDX-License-Identifier: Apache-2.0
#include "worker/measure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "topology/probe.h"
#include "worker/comm/local.h"
#include "worker/comm/network.h"
#include "worker/comm/socket.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// What one rank of a job of threads has; its Cancellation is its own.
struct Rank {
  Rank(const std::shared_ptr<LocalHub>& hub, int number)
      : channel(make_local_worker_channel(hub, number)),
        transport(make_local_transport(hub, number, channel->cancellation())),
        probe(*transport, channel->cancellation(), number) {}
  std::unique_ptr<WorkerChannel> channel;
  std::unique_ptr<Transport> transport;
  LinkProbe probe;
};

// Of `self` to all others of 1..count, in order.
LinkTask task_for(int self, int count, milliseconds timeout) {
  LinkTask task;
  task.set_timeout_ms(static_cast<int32_t>(timeout.count()));
  task.set_budget_ms(20);
  for (int other = 1; other <= count; ++other) {
    if (other == self) continue;
    LinkPeer& peer = *task.add_peers();
    peer.set_rank(other);
    peer.set_tag(std::min(self, other) * 100 + std::max(self, other));
    peer.set_host(host_name());
  }
  return task;
}

void run_ranks(const std::vector<int>& ranks, const std::shared_ptr<LocalHub>& hub,
               const std::function<void(int, Rank&)>& body) {
  std::vector<std::thread> threads;
  for (const int rank : ranks) {
    threads.emplace_back([&, rank] {
      Rank member(hub, rank);
      body(rank, member);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Measure, EveryPair) {
  constexpr int kRanks = 4;
  run_ranks({1, 2, 3, 4}, make_local_hub(kRanks), [](int self, Rank& rank) {
    LinkTask task = task_for(self, kRanks, milliseconds(20000));
    for (const auto step : {LinkTask::STEP_REACH, LinkTask::STEP_MEASURE}) {
      task.set_step(step);
      const LinkReport report = rank.probe.run(task);
      ASSERT_EQ(report.findings_size(), kRanks - 1);
      for (const LinkFinding& finding : report.findings()) {
        EXPECT_EQ(finding.error(), "");
        EXPECT_EQ(finding.transport(), "shared memory");
        const bool leads = self < finding.rank() && step == LinkTask::STEP_MEASURE;
        EXPECT_EQ(finding.latency_s() > 0, leads);
        EXPECT_EQ(finding.bandwidth_bytes_per_s() > 0, leads);
        EXPECT_LT(finding.latency_s(), 1);
      }
    }
  });
}

// Rank 3 is there and says nothing. Who waits for it knows after the time-out, once, and still
// reaches the others.
TEST(Measure, ASilentPeerIsFound) {
  const auto hub = make_local_hub(3);
  const auto start = steady_clock::now();
  run_ranks({1, 2}, hub, [](int self, Rank& rank) {
    const LinkReport report = rank.probe.run(task_for(self, 3, milliseconds(200)));
    ASSERT_EQ(report.findings_size(), 2);
    EXPECT_EQ(report.findings(0).error(), "");
    EXPECT_EQ(report.findings(1).rank(), 3);
    EXPECT_EQ(report.findings(1).error(), "no answer in time");
    EXPECT_FALSE(rank.channel->cancellation().cancelled()) << "the deadline is over";
  });
  const auto taken = steady_clock::now() - start;
  EXPECT_GE(taken, milliseconds(200));
  EXPECT_LT(taken, milliseconds(5000));
}

// It answers at first and then no more.
TEST(Measure, APeerThatFallsSilent) {
  run_ranks({1, 2}, make_local_hub(2), [](int self, Rank& rank) {
    LinkTask task = task_for(self, 2, milliseconds(5000));
    EXPECT_EQ(rank.probe.run(task).findings(0).error(), "");
    if (self == 2) return std::this_thread::sleep_for(milliseconds(400));
    task.set_step(LinkTask::STEP_MEASURE);
    task.set_timeout_ms(100);
    const LinkReport report = rank.probe.run(task);
    EXPECT_EQ(report.findings(0).error(), "no answer in time");
    EXPECT_EQ(report.findings(0).latency_s(), 0);
  });
}

TEST(Measure, IsCancelledAsAnyWait) {
  run_ranks({1}, make_local_hub(2), [](int, Rank& rank) {
    std::thread other([&] {
      std::this_thread::sleep_for(milliseconds(50));
      rank.channel->cancellation().cancel("the job is ending");
    });
    try {
      rank.probe.run(task_for(1, 2, milliseconds(20000)));
      ADD_FAILURE() << "it was not cancelled";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCancelled);
    }
    other.join();
  });
}

TEST(Measure, TasksThatCannotBe) {
  run_ranks({1}, make_local_hub(2), [](int, Rank& rank) {
    for (const int peer : {1, 0, -5}) {
      LinkTask task;
      task.add_peers()->set_rank(peer);
      EXPECT_THROW(rank.probe.run(task), Error);
    }
    EXPECT_EQ(rank.probe.run(LinkTask()).findings_size(), 0);
  });
}

// ---- which way ----

TEST(Network, KnowsItsInterfaces) {
  EXPECT_EQ(interface_with("127.0.0.1"), "lo");
  EXPECT_EQ(interface_towards("127.0.0.1"), "lo");
  EXPECT_EQ(interface_with("192.0.2.1"), "");
  EXPECT_EQ(interface_towards("no address"), "");
  EXPECT_EQ(interface_bytes_per_s("no interface"), 0);
}

TEST(Network, SeesItsOwnConnections) {
  const FileDescriptor listener = listen_for_workers(true);
  const uint16_t port = port_of(listener);
  const auto seen = [&] {
    const auto connections = own_connections();
    return std::ranges::count_if(connections, [&](const OwnConnection& c) {
      return c.remote_port == port && c.remote == "127.0.0.1" && c.local == "127.0.0.1";
    });
  };
  EXPECT_EQ(seen(), 0);
  const FileDescriptor connection =
      connect_socket("127.0.0.1", port, steady_clock::now() + milliseconds(5000));
  ASSERT_TRUE(connection);
  EXPECT_EQ(seen(), 1);

  LinkPeer peer;
  peer.set_host("elsewhere");
  peer.add_addresses("127.0.0.1");
  LinkFinding finding;
  describe_path(peer, own_connections(), 0, finding);
  EXPECT_EQ(finding.transport(), "TCP");
  EXPECT_EQ(finding.interface(), "lo");
  // A control connection says nothing of MPI; the route is known all the same.
  LinkFinding other;
  describe_path(peer, {{"127.0.0.1", "127.0.0.1", port}}, port, other);
  EXPECT_EQ(other.transport(), "MPI");
  EXPECT_EQ(other.interface(), "lo");
}

}  // namespace
}  // namespace trireme
