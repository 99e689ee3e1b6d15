// SPDX-License-Identifier: Apache-2.0
#include "launch/speeds.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "kernels/base/error.h"
#include "launch/speed_cache.h"
#include "tests/support/played_channel.h"
#include "topology/measured_speeds.h"

namespace trireme {
namespace {

Topology two_nodes() {
  Topology topology;
  for (int rank = 1; rank <= 4; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host(rank < 3 ? "a" : "b");
    info.mutable_device()->set_kind(DEVICE_KIND_CPU);
    info.mutable_device()->set_isa("avx2");
    info.mutable_device()->set_threads(2);
    info.mutable_device()->set_memory_bytes(uint64_t{1} << 34);
  }
  return topology;
}

SpeedReport answer_to(const SpeedTask& task, int rank) {
  SpeedReport report;
  report.set_memory_bandwidth_bytes_per_s(1e10);
  report.set_flops_16bit_per_s(1e11);
  for (const SpeedGroup& group : task.groups()) {
    if (group.ranks(0) != rank) continue;
    AllReduceRow& row = *report.add_rows();
    row.set_tp(group.ranks_size());
    row.set_alpha_s(1.2e-5);
    row.set_bus_bytes_per_s(1e9);
    row.set_measured(true);
    row.add_samples()->set_bytes(8192);
    row.mutable_samples(0)->set_seconds(1.2e-5);
  }
  return report;
}

// Workers that answer as the test says; counts who was asked.
class PlayedWorkers : public PlayedChannel {
 public:
  using Answer = std::function<std::optional<SpeedReport>(int rank, const SpeedTask& task)>;
  explicit PlayedWorkers(Answer answer =
                             [](int rank, const SpeedTask& task) {
                               return std::optional(answer_to(task, rank));
                             })
      : answer_(std::move(answer)) {}

  void send(int rank, const ToWorker& message) override {
    ASSERT_TRUE(message.has_speeds());
    ++asked[rank];
    const auto report = answer_(rank, message.speeds());
    if (!report) return;
    ChannelEvent event;
    event.rank = rank;
    *event.message.mutable_speeds() = *report;
    push(event);
  }

  std::map<int, int> asked;

 private:
  Answer answer_;
};

class Speeds : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("trireme-speeds-" + std::to_string(getpid()));
    options_.file = folder_ / "deep" / "speeds.json";
    options_.build = "a build";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string read_file() const {
    std::ifstream file(options_.file);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_file(const std::string& text) const { std::ofstream(options_.file) << text; }

  // How often workers were asked.
  int ask(const SpeedOptions& options, Topology topology = two_nodes()) {
    PlayedWorkers workers;
    measure_speeds(workers, options, topology);
    for (const RankInfo& rank : topology.ranks()) EXPECT_TRUE(rank.device().speed_measured());
    int all = 0;
    for (const auto& [rank, times] : workers.asked) all += times;
    return all;
  }

  std::filesystem::path folder_;
  SpeedOptions options_;
};

TEST_F(Speeds, AreMeasuredOnceAndKept) {
  EXPECT_EQ(ask(options_), 4);
  EXPECT_EQ(std::filesystem::status(options_.file).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  EXPECT_EQ(ask(options_), 0);
  Topology more = two_nodes();  // a node that is not known
  RankInfo& rank = *more.add_ranks();
  rank = more.ranks(0);
  rank.set_rank(5);
  rank.set_host("c");
  EXPECT_EQ(ask(options_, more), 1);
  Topology other = two_nodes();  // the same node, shared otherwise
  other.mutable_ranks(0)->mutable_device()->set_threads(1);
  EXPECT_EQ(ask(options_, other), 2);
  SpeedOptions changed = options_;
  changed.build = "another build";
  EXPECT_EQ(ask(changed), 4);
  changed = options_;
  changed.anew = true;
  EXPECT_EQ(ask(changed), 4);
  changed = options_;
  changed.file = "";
  EXPECT_EQ(ask(changed), 4);
  changed.file = "/proc/does/not/exist";
  EXPECT_EQ(ask(changed), 4) << "a cache that cannot be written costs a measurement";
}

TEST_F(Speeds, AFileThatCannotBeIsNotUsed) {
  ASSERT_EQ(ask(options_), 4);
  const std::string good = read_file();
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    EXPECT_NE(text.find(from), std::string::npos) << from;
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
      text.replace(at, from.size(), to);
    }
    return text;
  };
  const std::vector<std::string> bad = {
      "",
      "{",
      "[]",
      "{\"nodes\": 3}",
      std::string(100000, '['),
      std::string(9 << 20, ' '),
      replaced("10000000000", "-1"),
      replaced("10000000000", "\"NaN\""),
      replaced("100000000000", "1e300"),
      replaced("\"tp\":2", "\"tp\":7"),
      replaced("\"measured_at_unix_s\":\"", "\"measured_at_unix_s\":\"9")};
  for (const std::string& text : bad) {
    write_file(text);
    EXPECT_EQ(ask(options_), 4) << text.substr(0, 200);
    EXPECT_EQ(ask(options_), 0) << "and a good one is in its place";
  }
  std::filesystem::remove(options_.file);
  std::filesystem::create_directories(options_.file);
  EXPECT_EQ(ask(options_), 4);
}

TEST_F(Speeds, GrowOld) {
  constexpr int64_t kNow = 2'000'000'000, kWeek = 7 * 24 * 3600;
  std::filesystem::create_directories(folder_ / "deep");
  SpeedCache cache(options_.file, kNow);
  NodeSpeeds node;
  for (const auto& [key, at] :
       {std::pair{"fresh", kNow - kWeek + 9}, {"old", kNow - kWeek}, {"future", kNow + 1}}) {
    node.set_key(key);
    node.set_measured_at_unix_s(at);
    cache.keep(node);
  }
  cache.save();
  const SpeedCache again(options_.file, kNow);
  EXPECT_NE(again.find("fresh"), nullptr);
  EXPECT_EQ(again.find("old"), nullptr);
  EXPECT_EQ(again.find("future"), nullptr);
  EXPECT_EQ(again.find("none"), nullptr);
  EXPECT_EQ(age_text(59), "just now");
  EXPECT_EQ(age_text(60), "1 minute ago");
  EXPECT_EQ(age_text(3 * 3600 + 5), "3 hours ago");
  EXPECT_EQ(age_text(49 * 3600), "2 days ago");
}

// A moment of other work must not mark a device.
TEST_F(Speeds, WhatSeemsSlowIsLookedAtAgain) {
  int looks = 0;
  PlayedWorkers workers([&](int rank, const SpeedTask& task) {
    SpeedReport report = answer_to(task, rank);
    if (rank == 2 && looks++ == 0) report.set_memory_bandwidth_bytes_per_s(1e9);
    if (rank == 4) report.set_flops_16bit_per_s(2e10);
    return std::optional(report);
  });
  Topology topology = two_nodes();
  measure_speeds(workers, options_, topology);
  EXPECT_EQ(workers.asked, (std::map<int, int>{{1, 2}, {2, 2}, {3, 3}, {4, 3}}));
  EXPECT_FALSE(topology.ranks(1).device().degraded());
  EXPECT_EQ(topology.ranks(3).device().degraded_reason(),
            "matrices run at 20 GFLOP/s of 100, 20 % that its like reach");
  // What may be a mood of the machine is not kept: only the other node is known from now on.
  EXPECT_EQ(ask(options_), 2);
  EXPECT_EQ(speed_table(topology),
            "  devices            ranks  hosts  memory GB/s  GFLOP/s  all-reduce of 8 KiB, µs\n"
            "  avx2 x2            3      2      10           100      TP2 12\n"
            "  avx2 x2, degraded  1      b      10           20       TP2 12\n");
}

TEST(SpeedTable, SaysWhatItLeavesOut) {
  Topology topology;
  for (int rank = 1; rank <= 30; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host("a");
    DeviceInfo& device = *info.mutable_device();
    device.set_kind(DEVICE_KIND_CPU);
    device.set_threads(rank);
    device.set_speed_measured(true);
  }
  const std::string table = speed_table(topology);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 26) << table;
  EXPECT_NE(table.find("  and 6 kinds more\n"), std::string::npos) << table;
}

// NCCL reads its variables when it is first used in a process, which may be here.
TEST_F(Speeds, NcclIsToldItsWaysBeforeItIsMeasured) {
  Topology topology = two_nodes();
  for (RankInfo& rank : *topology.mutable_ranks()) {
    rank.mutable_device()->set_kind(DEVICE_KIND_CUDA);
    rank.set_nccl_version(22809);
    rank.set_interface("eth" + std::to_string(rank.rank() / 3));
  }
  (*topology.mutable_ranks(3)->mutable_nccl_variables())["NCCL_SOCKET_IFNAME"] = "ib0";
  std::map<int, std::string> told;
  PlayedWorkers workers([&](int rank, const SpeedTask& task) {
    const auto& settings = task.nccl_settings();
    const auto found = settings.find("NCCL_SOCKET_IFNAME");
    told[rank] = found == settings.end() ? "" : found->second;
    return std::optional(answer_to(task, rank));
  });
  const std::map<int, NcclSettings> ways = measure_speeds(workers, options_, topology);
  EXPECT_EQ(told, (std::map<int, std::string>{{1, "=eth0"}, {2, "=eth0"}, {3, "=eth1"}, {4, ""}}));
  ASSERT_EQ(ways.size(), 4u);
  EXPECT_EQ(ways.at(4).by_user.size(), 1u);
  EXPECT_TRUE(measure_speeds(workers, options_, topology).empty()) << "all are known";

  Topology apart = topology;  // a rank a host: nobody sums
  apart.mutable_ranks()->DeleteSubrange(1, 2);
  EXPECT_TRUE(measure_speeds(workers, options_, apart).empty());
}

std::string refusal(Code code, PlayedWorkers& workers, std::chrono::milliseconds timeout) {
  Topology topology = two_nodes();
  SpeedOptions options;
  options.timeout = timeout;
  try {
    measure_speeds(workers, options, topology);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

TEST(SpeedErrors, NameTheRank) {
  constexpr std::chrono::milliseconds kLong{60000};
  PlayedWorkers silent([](int rank, const SpeedTask& task) {
    return rank == 3 ? std::nullopt : std::optional(answer_to(task, rank));
  });
  EXPECT_NE(refusal(Code::kDeadlineExceeded, silent, std::chrono::milliseconds(1))
                .find("from rank 3 on b; see"),
            std::string::npos);
  PlayedWorkers lying([](int rank, const SpeedTask& task) {
    SpeedReport report = answer_to(task, rank);
    if (rank == 4) report.set_flops_16bit_per_s(std::nan(""));
    return std::optional(report);
  });
  EXPECT_NE(
      refusal(Code::kInternal, lying, kLong).find("rank 4 on b reports speeds that no device"),
      std::string::npos);
  PlayedWorkers generous([](int rank, const SpeedTask& task) {
    SpeedReport report = answer_to(task, rank);
    if (rank == 2) report.add_rows()->set_tp(2);
    return std::optional(report);
  });
  EXPECT_NE(refusal(Code::kInternal, generous, kLong).find("rank 2 on a"), std::string::npos);
  PlayedWorkers dead([](int, const SpeedTask&) { return std::nullopt; });
  ChannelEvent end;
  end.rank = 1;
  end.kind = ChannelEvent::Kind::kClosed;
  end.reason = "it was killed";
  dead.push(end);
  EXPECT_EQ(refusal(Code::kUnavailable, dead, kLong),
            "cannot start: rank 1 on a ended: it was killed");
}

}  // namespace
}  // namespace trireme
