// SPDX-License-Identifier: Apache-2.0
#include "topology/topology.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <string>

#include "kernels/base/error.h"

namespace trireme {
namespace {

// Two nodes of two GPUs, with all that a topology can hold.
Topology whole_topology() {
  Topology topology;
  for (int32_t rank = 1; rank <= 4; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host(rank <= 2 ? "a" : "b");
    DeviceInfo& device = *info.mutable_device();
    device.set_kind(DEVICE_KIND_CUDA);
    device.set_type("H100");
    device.set_memory_bytes(80'000'000'000);
    device.set_numa_node(0);
    device.set_rail(rank % 2);
    device.set_nvlinks(18);
  }
  AllReduceTable& table = *topology.add_all_reduce_tables();
  table.set_name("nvs4");
  for (const int32_t tp : {2, 4}) {
    AllReduceRow& row = *table.add_rows();
    row.set_tp(tp);
    row.set_alpha_s(5e-6);
    row.set_bus_bytes_per_s(3e11);
    for (const uint64_t bytes : {8192u, 1u << 20}) {
      AllReduceSample& sample = *row.add_samples();
      sample.set_bytes(bytes);
      sample.set_seconds(1e-5);
    }
  }
  for (const int32_t first : {1, 3}) {
    Island& island = *topology.add_islands();
    island.add_ranks(first);
    island.add_ranks(first + 1);
    island.set_all_reduce_table("nvs4");
    island.mutable_link()->set_link_class(LINK_CLASS_NVL);
  }
  for (const char* host : {"a", "b"}) {
    NodeInfo& node = *topology.add_nodes();
    node.set_host(host);
    node.set_group(std::string("rack-") + host);
    NicInfo& nic = *node.add_nics();
    nic.set_name("mlx5_0");
    nic.set_rate_bytes_per_s(5e10);
    nic.set_state(NIC_STATE_ACTIVE);
  }
  NetworkLink& network = *topology.add_network();
  network.set_a("a");
  network.set_b("rack-b");
  network.mutable_speed()->set_link_class(LINK_CLASS_NET);
  network.mutable_speed()->set_latency_s(2e-5);
  network.mutable_speed()->set_bandwidth_bytes_per_s(3.6e10);
  Link& link = *topology.add_links();
  link.set_rank_a(2);
  link.set_rank_b(3);
  *link.mutable_speed() = network.speed();
  link.mutable_speed()->set_degraded(true);
  return topology;
}

std::string refusal(const Topology& topology) {
  try {
    validate_topology(topology);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Topology, RoundTripsAsJson) {
  const Topology topology = whole_topology();
  EXPECT_EQ(refusal(topology), "");
  const std::string path = testing::TempDir() + "/topology.json";
  std::ofstream(path) << topology_to_json(topology);
  EXPECT_EQ(read_topology(path).SerializeAsString(), topology.SerializeAsString());
  std::remove(path.c_str());
  EXPECT_THROW(read_topology(path), Error);
  EXPECT_THROW(topology_from_json("{\"ranks\": [{\"rnk\": 1}]}"), Error);
  EXPECT_THROW(topology_from_json("[[[[["), Error);
}

struct Hostile {
  const char* needle;  // in the error
  std::function<void(Topology&)> harm;
};

class HostileTopology : public testing::TestWithParam<Hostile> {};

TEST_P(HostileTopology, IsRefusedWithItsPlace) {
  Topology topology = whole_topology();
  GetParam().harm(topology);
  const std::string message = refusal(topology);
  EXPECT_NE(message.find(GetParam().needle), std::string::npos) << message;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
LinkSpeed& network_speed(Topology& t) { return *t.mutable_network(0)->mutable_speed(); }
DeviceSpeed& device_speed(Topology& t) {
  return *t.mutable_ranks(1)->mutable_device()->mutable_speed();
}
AllReduceTable& table_of(Topology& t) { return *t.mutable_all_reduce_tables(0); }

const Hostile kHostile[] = {
    Hostile{"rank 1 is there a second time", [](Topology& t) { t.mutable_ranks(1)->set_rank(1); }},
    Hostile{"rank -3 is negative", [](Topology& t) { t.mutable_ranks(0)->set_rank(-3); }},
    Hostile{"ascending", [](Topology& t) { t.mutable_ranks(0)->set_rank(9); }},
    Hostile{"1 PiB",
            [](Topology& t) { t.mutable_ranks(0)->mutable_device()->set_memory_bytes(~0ull); }},
    Hostile{"70 NVLinks",
            [](Topology& t) { t.mutable_ranks(0)->mutable_device()->set_nvlinks(70); }},
    Hostile{"flops_16bit_per_s nan",
            [](Topology& t) { device_speed(t).set_flops_16bit_per_s(kNan); }},
    Hostile{"memory_efficiency -1", [](Topology& t) { device_speed(t).set_memory_efficiency(-1); }},
    Hostile{"launch_s inf", [](Topology& t) { device_speed(t).set_launch_s(kInf); }},
    Hostile{"smoothing_exponent 0.5",
            [](Topology& t) { device_speed(t).set_smoothing_exponent(.5); }},
    Hostile{"island 0 has no rank", [](Topology& t) { t.mutable_islands(0)->clear_ranks(); }},
    Hostile{"rank 77, which is not there",
            [](Topology& t) { t.mutable_islands(0)->add_ranks(77); }},
    Hostile{"in an island already", [](Topology& t) { t.mutable_islands(0)->add_ranks(3); }},
    Hostile{"\"fast\", which is not there",
            [](Topology& t) { t.mutable_islands(1)->set_all_reduce_table("fast"); }},
    Hostile{"joins a rank to itself", [](Topology& t) { t.mutable_links(0)->set_rank_b(2); }},
    Hostile{"3-2 is there a second time",
            [](Topology& t) {
              Link& link = *t.add_links();
              link = t.links(0);
              link.set_rank_a(3);
              link.set_rank_b(2);
            }},
    Hostile{"rank 0, which is not there", [](Topology& t) { t.mutable_links(0)->set_rank_a(0); }},
    Hostile{"bandwidth_bytes_per_s nan",
            [](Topology& t) { network_speed(t).set_bandwidth_bytes_per_s(kNan); }},
    Hostile{"bandwidth_bytes_per_s 0",
            [](Topology& t) { network_speed(t).set_bandwidth_bytes_per_s(0); }},
    Hostile{"latency_s -1", [](Topology& t) { network_speed(t).set_latency_s(-1); }},
    Hostile{"link_class 12",
            [](Topology& t) { network_speed(t).set_link_class(static_cast<LinkClass>(12)); }},
    Hostile{"no host and no group", [](Topology& t) { t.mutable_network(0)->set_a("c"); }},
    Hostile{"is there a second time",
            [](Topology& t) {
              NetworkLink& link = *t.add_network();
              link = t.network(0);
              link.set_a("rack-b");
              link.set_b("a");
            }},
    Hostile{"node \"a\" is there a second time",
            [](Topology& t) { t.mutable_nodes(1)->set_host("a"); }},
    Hostile{"NIC \"mlx5_0\" is there a second time",
            [](Topology& t) { *t.mutable_nodes(0)->add_nics() = t.nodes(0).nics(0); }},
    Hostile{"rate_bytes_per_s -1",
            [](Topology& t) { t.mutable_nodes(0)->mutable_nics(0)->set_rate_bytes_per_s(-1); }},
    Hostile{"has no name", [](Topology& t) { table_of(t).set_name(""); }},
    Hostile{"table \"nvs4\" is there a second time",
            [](Topology& t) { *t.add_all_reduce_tables() = t.all_reduce_tables(0); }},
    Hostile{"comes after TP 2", [](Topology& t) { table_of(t).mutable_rows(1)->set_tp(2); }},
    Hostile{"bus_bytes_per_s 0",
            [](Topology& t) { table_of(t).mutable_rows(0)->set_bus_bytes_per_s(0); }},
    Hostile{"ascend by bytes",
            [](Topology& t) { table_of(t).mutable_rows(0)->mutable_samples(1)->set_bytes(1); }},
    Hostile{"seconds -1",
            [](Topology& t) { table_of(t).mutable_rows(0)->mutable_samples(1)->set_seconds(-1); }},
    Hostile{"has 300 rows", [](Topology& t) {
              for (int i = 3; i <= 300; ++i) table_of(t).add_rows()->set_tp(2 * i);
            }}};

INSTANTIATE_TEST_SUITE_P(Ways, HostileTopology, testing::ValuesIn(kHostile));

}  // namespace
}  // namespace trireme
