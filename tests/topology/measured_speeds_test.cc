// SPDX-License-Identifier: Apache-2.0
#include "topology/measured_speeds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/models.h"
#include "topology/link_graph.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "topology/slow_links.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

// `hosts` nodes h0.. of `each` ranks with a core of its own for each of two threads.
Topology nodes(int hosts, int each) {
  Topology topology;
  for (int host = 0; host < hosts; ++host) {
    topology.add_nodes()->set_host("h" + std::to_string(host));
    for (int i = 0; i < each; ++i) {
      RankInfo& rank = *topology.add_ranks();
      rank.set_rank(topology.ranks_size());
      rank.set_host("h" + std::to_string(host));
      DeviceInfo& device = *rank.mutable_device();
      device.set_kind(DEVICE_KIND_CPU);
      device.set_name("a CPU");
      device.set_isa("avx2");
      device.set_threads(2);
      device.set_memory_bytes(16 * kGiB);
      device.add_cpus(2 * i);
      device.add_cpus(2 * i + 1);
    }
  }
  return topology;
}

AllReduceRow reduce(int32_t tp, double alpha_s) {
  AllReduceRow row;
  row.set_tp(tp);
  row.set_alpha_s(alpha_s);
  row.set_bus_bytes_per_s(2e9);
  row.set_measured(true);
  for (const uint64_t bytes : {uint64_t{8} << 10, uint64_t{1} << 20}) {
    AllReduceSample& sample = *row.add_samples();
    sample.set_bytes(bytes);
    sample.set_seconds(alpha_s + double(bytes) / 2e9);
  }
  return row;
}

SpeedReports measured(const Topology& topology, double gigabytes = 10) {
  SpeedReports reports;
  std::map<std::string, std::vector<int32_t>> hosts;
  for (const RankInfo& rank : topology.ranks()) hosts[rank.host()].push_back(rank.rank());
  for (const auto& [host, ranks] : hosts) {
    for (const int32_t rank : ranks) {
      // Equal devices differ by some per cent.
      reports[rank].set_memory_bandwidth_bytes_per_s(gigabytes * 1e9 * (1 - 0.01 * (rank % 7)));
      reports[rank].set_flops_16bit_per_s(1e11 * (1 - 0.01 * (rank % 5)));
    }
    for (const int32_t tp : reduce_degrees(ranks.size())) {
      *reports[ranks.front()].add_rows() = reduce(tp, 1e-5 * tp);
    }
  }
  return reports;
}

TEST(MeasuredSpeeds, DegreesOfANode) {
  EXPECT_EQ(reduce_degrees(0), std::vector<int32_t>());
  EXPECT_EQ(reduce_degrees(1), std::vector<int32_t>());
  EXPECT_EQ(reduce_degrees(2), std::vector<int32_t>({2}));
  EXPECT_EQ(reduce_degrees(3), std::vector<int32_t>({2, 3}));
  EXPECT_EQ(reduce_degrees(7), std::vector<int32_t>({2, 4, 7}));
  EXPECT_EQ(reduce_degrees(8), std::vector<int32_t>({2, 4, 8}));
  EXPECT_EQ(reduce_degrees(64), std::vector<int32_t>({2, 4, 8, 16}));
}

TEST(MeasuredSpeeds, AlikeDevicesHaveOneSpeed) {
  Topology topology = nodes(3, 4);
  EXPECT_EQ(apply_speeds(measured(topology), topology), std::vector<std::string>());
  EXPECT_NO_THROW(validate_topology(topology));
  const DeviceSpeed& first = topology.ranks(0).device().speed();
  for (const RankInfo& rank : topology.ranks()) {
    const DeviceInfo& device = rank.device();
    EXPECT_TRUE(device.speed_measured());
    EXPECT_FALSE(device.degraded());
    EXPECT_EQ(device.speed().SerializeAsString(), first.SerializeAsString());
  }
  EXPECT_NEAR(first.memory_bandwidth_bytes_per_s(), 9.7e9, 0.2e9);
  ASSERT_EQ(topology.islands_size(), 3);
  ASSERT_EQ(topology.all_reduce_tables_size(), 1) << "alike nodes share a table";
  EXPECT_EQ(topology.all_reduce_tables(0).rows_size(), 2);
  EXPECT_EQ(topology.all_reduce_tables(0).rows(1).tp(), 4);
}

// It replaces what the table of devices assumes, and the plan follows.
TEST(MeasuredSpeeds, OverrideWhatTablesSay) {
  const ModelSpec model = smollm2();
  PlacementOptions options;
  options.pp = 2;
  options.tp = options.dp = 1;
  const auto layers_of_first = [&](const Topology& topology) {
    const Placement placement = plan_placement(topology, model, options);
    for (const StageSpec& stage : placement.replicas(0).stages()) {
      if (stage.shards(0).rank() == 1) return length(stage.layers());
    }
    return -1;
  };
  Topology topology = nodes(2, 1);
  SpeedReports reports = measured(topology);
  apply_speeds(reports, topology);
  const int32_t alike = layers_of_first(topology);
  topology = nodes(2, 1);
  reports[1].set_memory_bandwidth_bytes_per_s(3e9);
  reports[1].set_flops_16bit_per_s(3e10);
  apply_speeds(reports, topology);
  EXPECT_TRUE(topology.ranks(0).device().degraded());
  EXPECT_LT(layers_of_first(topology), alike / 2 + 1) << "of " << model.num_layers();
}

TEST(MeasuredSpeeds, ADeviceFarUnderItsLike) {
  Topology topology = nodes(2, 4);
  SpeedReports reports = measured(topology);
  reports[3].set_memory_bandwidth_bytes_per_s(4e9);
  reports[6].set_flops_16bit_per_s(0.7e11);
  EXPECT_EQ(seem_slow(topology, reports), std::vector<int32_t>({3, 6}));
  const std::vector<std::string> words = apply_speeds(reports, topology);
  ASSERT_EQ(words.size(), 1u);
  EXPECT_EQ(words[0], "rank 3 on h0: memory gives 4 GB/s of 9.8, 41 % that its like reach");
  EXPECT_TRUE(topology.ranks(2).device().degraded());
  EXPECT_EQ(topology.ranks(2).device().speed().memory_bandwidth_bytes_per_s(), 4e9);
  // Not far, but more than noise: a speed of its own.
  EXPECT_FALSE(topology.ranks(5).device().degraded());
  EXPECT_EQ(topology.ranks(5).device().speed().flops_16bit_per_s(), 0.7e11);
  EXPECT_NO_THROW(validate_topology(topology));
}

TEST(MeasuredSpeeds, WhoSharesCoresIsNoWorseDevice) {
  Topology topology = nodes(1, 4);
  for (RankInfo& rank : *topology.mutable_ranks()) {
    rank.mutable_device()->set_cpus(0, 0);
    rank.mutable_device()->set_cpus(1, 1);
  }
  SpeedReports reports = measured(topology);
  reports[3].set_memory_bandwidth_bytes_per_s(2e9);
  EXPECT_EQ(seem_slow(topology, reports), std::vector<int32_t>());
  EXPECT_EQ(apply_speeds(reports, topology), std::vector<std::string>());
  EXPECT_GT(topology.ranks(2).device().speed().memory_bandwidth_bytes_per_s(), 9e9);
}

// Makers say what a GPU has: all of a kind can be under it.
// Quotas are known, so what they cost is no noise: each such rank has the speed that was measured.
TEST(MeasuredSpeeds, WhoHasAQuotaHasASpeedOfItsOwn) {
  Topology topology = nodes(1, 3);
  const double quotas[] = {0, 1.5, 0.5};
  for (int i = 0; i < 3; ++i) {
    DeviceInfo& device = *topology.mutable_ranks(i)->mutable_device();
    device.clear_cpus();
    for (const int cpu : {0, 1, 2, 3}) device.add_cpus(cpu);  // shared; together they use them all
    device.set_cpu_quota(quotas[i]);
  }
  SpeedReports reports = measured(topology);
  reports[2].set_memory_bandwidth_bytes_per_s(7e9);
  reports[3].set_memory_bandwidth_bytes_per_s(2e9);
  EXPECT_EQ(seem_slow(topology, reports), std::vector<int32_t>());
  EXPECT_EQ(apply_speeds(reports, topology), std::vector<std::string>());
  EXPECT_EQ(topology.ranks(1).device().speed().memory_bandwidth_bytes_per_s(), 7e9);
  EXPECT_EQ(topology.ranks(2).device().speed().memory_bandwidth_bytes_per_s(), 2e9);
  EXPECT_FALSE(topology.ranks(2).device().degraded());
}

TEST(MeasuredSpeeds, AGpuFarUnderItsType) {
  Topology topology = nodes(1, 2);
  for (RankInfo& rank : *topology.mutable_ranks()) {
    rank.mutable_device()->set_kind(DEVICE_KIND_CUDA);
    rank.mutable_device()->set_name("NVIDIA H100 80GB HBM3");
  }
  SpeedReports reports = measured(topology, 3100);
  for (auto& [rank, report] : reports) report.set_flops_16bit_per_s(2e14);
  const std::vector<std::string> words = apply_speeds(reports, topology);
  ASSERT_EQ(words.size(), 2u);
  EXPECT_NE(words[0].find("matrices run at 200000 GFLOP/s of 731860, 27 % that its type has"),
            std::string::npos)
      << words[0];
}

TEST(MeasuredSpeeds, ANodeWhoseAllReducesAreSlow) {
  Topology topology = nodes(4, 4);
  SpeedReports reports = measured(topology);
  for (AllReduceRow& row : *reports[5].mutable_rows()) row = reduce(row.tp(), 1e-2);
  const std::vector<std::string> words = apply_speeds(reports, topology);
  ASSERT_EQ(words.size(), 1u);
  EXPECT_NE(words[0].find("all-reduces on h1 take up to"), std::string::npos) << words[0];
  EXPECT_EQ(topology.nodes(1).notes(0), words[0]);
  EXPECT_EQ(topology.all_reduce_tables_size(), 2);
  EXPECT_NE(topology.islands(1).all_reduce_table(), topology.islands(0).all_reduce_table());
  EXPECT_NO_THROW(validate_topology(topology));
}

TEST(MeasuredSpeeds, PairsThatWereNotMeasuredAreAsTheirLike) {
  Topology topology = nodes(2, 3);
  NetworkLink& any = *topology.add_network();
  any.mutable_speed()->set_bandwidth_bytes_per_s(1e10);
  any.mutable_speed()->set_link_class(LINK_CLASS_NET);
  const auto add = [&](int a, int b, double gigabytes) {
    Link& link = *topology.add_links();
    link.set_rank_a(a);
    link.set_rank_b(b);
    link.mutable_speed()->set_measured(true);
    link.mutable_speed()->set_latency_s(1e-5);
    link.mutable_speed()->set_bandwidth_bytes_per_s(gigabytes * 1e9);
  };
  add(1, 2, 5);
  add(1, 4, 0.4);
  apply_speeds(measured(topology), topology);
  EXPECT_NO_THROW(validate_topology(topology));
  const LinkGraph links(topology);
  EXPECT_EQ(links.between(1, 2).bandwidth_bytes_per_s(), 5e9);
  EXPECT_EQ(links.between(2, 5).bandwidth_bytes_per_s(), 4e8);
  EXPECT_TRUE(links.between(2, 5).measured());
}

TEST(MeasuredSpeeds, ReportsThatCannotBe) {
  const SpeedReport good = measured(nodes(1, 4))[1];
  const std::vector<int32_t> degrees = reduce_degrees(4);
  EXPECT_TRUE(is_sound(good, degrees));
  EXPECT_FALSE(is_sound(good, {}));
  EXPECT_FALSE(is_sound(good, reduce_degrees(8)));
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::function<void(SpeedReport&)>> changes = {
      [&](SpeedReport& r) { r.set_memory_bandwidth_bytes_per_s(nan); },
      [&](SpeedReport& r) { r.set_memory_bandwidth_bytes_per_s(-1e9); },
      [&](SpeedReport& r) { r.set_flops_16bit_per_s(infinity); },
      [&](SpeedReport& r) { r.set_flops_16bit_per_s(0); },
      [&](SpeedReport& r) { r.mutable_rows(0)->set_tp(3); },
      [&](SpeedReport& r) { r.mutable_rows(1)->set_alpha_s(nan); },
      [&](SpeedReport& r) { r.mutable_rows(1)->set_bus_bytes_per_s(0); },
      [&](SpeedReport& r) { r.mutable_rows(1)->clear_samples(); },
      [&](SpeedReport& r) { r.mutable_rows(0)->mutable_samples(1)->set_bytes(8192); },
      [&](SpeedReport& r) { r.mutable_rows(0)->mutable_samples(1)->set_seconds(-1); },
      [&](SpeedReport& r) { *r.add_rows() = reduce(8, 1e-5); },
      [&](SpeedReport& r) {
        for (uint64_t i = 1; i < 99; ++i) {
          AllReduceSample& sample = *r.mutable_rows(0)->add_samples();
          sample.set_bytes((uint64_t{1} << 20) + i);
          sample.set_seconds(1);
        }
      },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    SpeedReport bad = good;
    changes[i](bad);
    EXPECT_FALSE(is_sound(bad, degrees)) << i;
  }
}

// ---- links ----

Link& add_link(Topology& topology, int a, int b, double latency_us, double gigabytes,
               double nominal) {
  Link& link = *topology.add_links();
  link.set_rank_a(a);
  link.set_rank_b(b);
  LinkSpeed& speed = *link.mutable_speed();
  speed.set_measured(true);
  speed.set_latency_s(latency_us * 1e-6);
  speed.set_bandwidth_bytes_per_s(gigabytes * 1e9);
  speed.set_nominal_bandwidth_bytes_per_s(nominal * 1e9);
  return link;
}

TEST(SlowLinks, AreMarkedWithTheReason) {
  Topology topology = nodes(6, 1);
  for (int rank = 2; rank <= 6; ++rank) add_link(topology, 1, rank, 20, 1, 1.25);
  EXPECT_TRUE(mark_slow_links(topology).empty());
  topology.mutable_links(1)->mutable_speed()->set_bandwidth_bytes_per_s(0.1e9);
  topology.mutable_links(2)->mutable_speed()->set_latency_s(1e-3);
  const std::vector<std::string> words = mark_slow_links(topology);
  ASSERT_EQ(words.size(), 1u);
  EXPECT_EQ(words[0],
            "rank 1 on h0 - rank 3 on h2: 0.1 GB/s of the 1.25 that its interface has: 8 %");
  EXPECT_EQ(topology.links(1).speed().degraded_reason(),
            "0.1 GB/s of the 1.25 that its interface has: 8 %; "
            "0.1 GB/s, its like have 1: 10 % of it");
  EXPECT_EQ(topology.links(2).speed().degraded_reason(), "1000 us, its like have 20: 5000 % of it");
  EXPECT_FALSE(topology.links(0).speed().degraded());
}

TEST(SlowLinks, OfFastInterfacesAndFullNodesLittleIsAsked) {
  Topology fast = nodes(2, 1);
  add_link(fast, 1, 2, 10, 2.5, 50);  // one message over TCP
  EXPECT_TRUE(mark_slow_links(fast).empty());
  EXPECT_FALSE(fast.links(0).speed().degraded());
  Topology full = nodes(1, 6);
  for (RankInfo& rank : *full.mutable_ranks()) {
    rank.mutable_device()->clear_cpus();
    rank.mutable_device()->add_cpus(0);
  }
  for (int rank = 2; rank <= 6; ++rank) add_link(full, 1, rank, rank == 3 ? 900 : 1, 5, 0);
  mark_slow_links(full);
  for (const Link& link : full.links()) EXPECT_FALSE(link.speed().degraded());
}

}  // namespace
}  // namespace trireme
