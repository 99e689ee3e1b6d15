// SPDX-License-Identifier: Apache-2.0
#include "launch/links.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "kernels/base/error.h"
#include "tests/support/played_channel.h"

namespace trireme {
namespace {

constexpr std::chrono::milliseconds kTimeout{20000};

RankInfo rank_on(int rank, const std::string& host) {
  RankInfo info;
  info.set_rank(rank);
  info.set_host(host);
  return info;
}

MeasuredLink link(int a, const std::string& host_a, int b, const std::string& host_b,
                  double latency_us, double gigabytes) {
  MeasuredLink link{rank_on(a, host_a), rank_on(b, host_b), {}, ""};
  link.finding.set_transport(host_a == host_b ? "shared memory" : "TCP");
  if (host_a != host_b) link.finding.set_interface("eth0");
  link.finding.set_latency_s(latency_us * 1e-6);
  link.finding.set_bandwidth_bytes_per_s(gigabytes * 1e9);
  return link;
}

TEST(LinkTable, ARowForEachPairOfHosts) {
  std::vector<MeasuredLink> links = {
      link(1, "a", 2, "a", 0.5, 8),   link(1, "a", 3, "b", 20, 0.12),
      link(2, "a", 3, "b", 40, 0.1),  link(1, "a", 4, "b", 30, 0.115),
      link(3, "b", 4, "b", 0.6, 7.5),
  };
  links[1].finding.set_interface_bytes_per_s(125e6);
  EXPECT_EQ(link_table(links),
            "  links     transport           pairs  latency µs    bandwidth GB/s\n"
            "  a - b     TCP, eth0           2      30 / 40 / 40  0.1 / 0.115 / 0.115\n"
            "  a - b     TCP, eth0 1 Gbit/s  1      20            0.12\n"
            "  inside a  shared memory       1      0.5           8\n"
            "  inside b  shared memory       1      0.6           7.5\n");
}

TEST(LinkTable, NamesWhatIsFarFromItsLike) {
  std::vector<MeasuredLink> links;
  for (int rank = 2; rank < 8; ++rank) links.push_back(link(1, "a", rank, "b", 20, 1));
  links[3].finding.set_bandwidth_bytes_per_s(1e8);
  links[4].finding.set_latency_s(1e-3);
  const std::string table = link_table(links);
  const size_t worst =
      table.find("far from its like: rank 1 on a - rank 6 on b, TCP, eth0: 1000 µs");
  const size_t other =
      table.find("far from its like: rank 1 on a - rank 5 on b, TCP, eth0: 20 µs, 0.1 GB/s");
  ASSERT_NE(worst, std::string::npos) << table;
  ASSERT_NE(other, std::string::npos) << table;
  EXPECT_LT(worst, other);
  EXPECT_EQ(table.find("rank 7"), std::string::npos);
}

// Noise of the scheduler is no property of a link.
TEST(LinkTable, RanksThatShareCoresAreNoOutliers) {
  std::vector<MeasuredLink> links;
  for (int rank = 2; rank < 8; ++rank) links.push_back(link(1, "a", rank, "a", 1, 1));
  links[3].finding.set_latency_s(1e-3);
  EXPECT_NE(link_table(links).find("far from its like: rank 1 on a - rank 5 on a"),
            std::string::npos);
  for (MeasuredLink& each : links) {
    for (RankInfo* const info : {&each.a, &each.b}) {
      for (const int cpu : {0, 1}) info->mutable_device()->add_cpus(cpu);
    }
  }
  const std::string table = link_table(links);
  EXPECT_EQ(table.find("far from its like"), std::string::npos) << table;
  EXPECT_NE(table.find("a has more ranks than cores"), std::string::npos) << table;
}

TEST(LinkTable, StaysShortWhenHostsAreMany) {
  std::vector<MeasuredLink> links;
  for (int rank = 1; rank < 500; ++rank) {
    links.push_back(link(rank, "h" + std::to_string(rank), rank + 1, "h" + std::to_string(rank + 1),
                         rank % 10 == 0 ? 900 : 20, 1));
  }
  const std::string table = link_table(links);
  EXPECT_LE(std::count(table.begin(), table.end(), '\n'), 8);
  EXPECT_NE(table.find("between hosts"), std::string::npos);
  EXPECT_NE(table.find("and 44 more"), std::string::npos) << table;
}

// Workers that answer as the test says.
class PlayedWorkers : public PlayedChannel {
 public:
  using Answer = std::function<std::optional<LinkReport>(int rank, const LinkTask& task)>;
  explicit PlayedWorkers(Answer answer) : answer_(std::move(answer)) {}

  void send(int rank, const ToWorker& message) override {
    ASSERT_TRUE(message.has_links());
    const auto report = answer_(rank, message.links());
    if (!report) return;
    ChannelEvent event;
    event.rank = rank;
    *event.message.mutable_links() = *report;
    push(event);
  }
  void close(int rank) {
    ChannelEvent event;
    event.rank = rank;
    event.kind = ChannelEvent::Kind::kClosed;
    event.reason = "it was killed";
    push(event);
  }

 private:
  Answer answer_;
};

std::vector<Hello> workers(int count) {
  std::vector<Hello> hellos(count);
  for (int i = 0; i < count; ++i) {
    *hellos[i].mutable_info() = rank_on(i + 1, "h" + std::to_string(i / 2));
    hellos[i].add_addresses("10.0.0." + std::to_string(i / 2));
  }
  return hellos;
}

LinkReport good(int rank, const LinkTask& task) {
  LinkReport report;
  for (const LinkPeer& peer : task.peers()) {
    LinkFinding& finding = *report.add_findings();
    finding.set_rank(peer.rank());
    finding.set_transport("TCP");
    finding.set_interface("eth1");
    if (task.step() == LinkTask::STEP_REACH || peer.rank() < rank) continue;
    finding.set_latency_s(1e-5);
    finding.set_bandwidth_bytes_per_s(1e9);
  }
  return report;
}

std::string refusal(Code code, PlayedWorkers& channel, int count) {
  Topology topology;
  try {
    measure_links(channel, workers(count), 7, kTimeout, topology);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

TEST(Links, OfEveryPairAreInTheTopology) {
  std::set<int> tags;
  PlayedWorkers channel([&](int rank, const LinkTask& task) {
    EXPECT_EQ(task.peers_size(), 4);
    EXPECT_EQ(task.control_port(), 7);
    for (const LinkPeer& peer : task.peers()) {
      EXPECT_EQ(peer.host(), "h" + std::to_string((peer.rank() - 1) / 2));
      EXPECT_EQ(peer.addresses_size(), 1);
      tags.insert(peer.tag());
    }
    LinkReport report = good(rank, task);
    for (LinkFinding& finding : *report.mutable_findings()) {
      if (rank == 5) finding.set_interface("eth5");
    }
    return report;
  });
  Topology topology;
  measure_links(channel, workers(5), 7, kTimeout, topology);
  EXPECT_EQ(tags.size(), 10u);
  ASSERT_EQ(topology.links_size(), 10);
  std::set<std::pair<int, int>> pairs;
  for (const Link& link : topology.links()) {
    EXPECT_TRUE(pairs.emplace(link.rank_a(), link.rank_b()).second);
    EXPECT_LT(link.rank_a(), link.rank_b());
    EXPECT_TRUE(link.speed().measured());
    EXPECT_EQ(link.speed().latency_s(), 1e-5);
    EXPECT_EQ(link.interface_a(), "eth1");
    EXPECT_EQ(link.interface_b(), link.rank_b() == 5 ? "eth5" : "eth1");
    const bool one_host = (link.rank_a() - 1) / 2 == (link.rank_b() - 1) / 2;
    EXPECT_EQ(link.speed().link_class(), one_host ? LINK_CLASS_NODE : LINK_CLASS_NET);
  }
  PlayedWorkers silent([](int, const LinkTask&) { return std::nullopt; });
  Topology alone;
  measure_links(silent, workers(1), 0, kTimeout, alone);  // nobody to measure
  EXPECT_EQ(alone.links_size(), 0);
}

TEST(Links, PairsThatCannotConnectAreNamed) {
  for (const auto step : {LinkTask::STEP_REACH, LinkTask::STEP_MEASURE}) {
    PlayedWorkers one([&](int rank, const LinkTask& task) {
      LinkReport report = good(rank, task);
      for (LinkFinding& finding : *report.mutable_findings()) {
        if (task.step() == step && rank + finding.rank() == 5 &&
            std::abs(rank - finding.rank()) == 1) {
          finding.set_error("no answer in time");
        }
      }
      return report;
    });
    const std::string message = refusal(Code::kUnavailable, one, 4);
    EXPECT_NE(
        message.find("rank 2 on h0 hears nothing from rank 3 on h1 (TCP, eth1): no answer in time"),
        std::string::npos)
        << message;
    EXPECT_EQ(message.find("rank 4"), std::string::npos) << message;
  }
  PlayedWorkers all([](int rank, const LinkTask& task) {
    LinkReport report = good(rank, task);
    for (LinkFinding& finding : *report.mutable_findings()) {
      if (finding.rank() == 8) finding.set_error("no answer in time");
    }
    return report;
  });
  const std::string message = refusal(Code::kUnavailable, all, 8);
  EXPECT_NE(message.find("and 1 more pairs; rank 8 on h3 is in each of these pairs"),
            std::string::npos)
      << message;
}

TEST(Links, AWorkerThatDoesNotReport) {
  PlayedWorkers channel([](int rank, const LinkTask& task) {
    return rank == 2 ? std::nullopt : std::optional(good(rank, task));
  });
  Topology topology;
  try {
    measure_links(channel, workers(4), 7, std::chrono::milliseconds(10), topology);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kDeadlineExceeded);
    EXPECT_NE(std::string(error.what()).find("from rank 2 on h0; see"), std::string::npos)
        << error.what();
  }
}

TEST(Links, ARankThatEnds) {
  PlayedWorkers channel([](int, const LinkTask&) { return std::nullopt; });
  channel.close(3);
  EXPECT_EQ(refusal(Code::kUnavailable, channel, 4),
            "cannot start: rank 3 on h1 ended: it was killed");
}

TEST(Links, ReportsOfWhatWasNotAsked) {
  const std::vector<std::function<void(LinkReport&)>> changes = {
      [](LinkReport& r) { r.mutable_findings(0)->set_rank(99); },
      [](LinkReport& r) { r.mutable_findings()->RemoveLast(); },
      [](LinkReport& r) { r.add_findings()->set_rank(1); },
      [](LinkReport& r) { r.mutable_findings(0)->set_latency_s(-1); },
      [](LinkReport& r) { r.mutable_findings(0)->set_latency_s(std::nan("")); },
      [](LinkReport& r) { r.mutable_findings(0)->set_bandwidth_bytes_per_s(INFINITY); },
  };
  for (const auto& change : changes) {
    PlayedWorkers channel([&](int rank, const LinkTask& task) {
      LinkReport report = good(rank, task);
      if (rank == 2) change(report);
      return report;
    });
    const std::string message = refusal(Code::kInternal, channel, 3);
    EXPECT_NE(message.find("rank 2 on h0 reports what it was not asked"), std::string::npos)
        << message;
  }
}

}  // namespace
}  // namespace trireme
