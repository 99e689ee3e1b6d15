// SPDX-License-Identifier: Apache-2.0
// Interfaces and ports for NCCL: machines as files, and what the user has set.
#include "topology/nccl_settings.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "kernels/base/error.h"
#include "topology/topology.h"

namespace trireme {
namespace {

Topology read(const std::string& name) {
  return read_topology(TRIREME_SOURCE_DIR "/tests/data/topologies/nccl-" + name + ".json");
}

std::set<int> all_ranks(const Topology& topology) {
  std::set<int> ranks;
  for (const RankInfo& info : topology.ranks()) ranks.insert(info.rank());
  return ranks;
}

using Values = std::map<std::string, std::string>;

NcclSettings choose(const Topology& topology, int rank, const Values& environment = {}) {
  const NcclVariables variables(environment.begin(), environment.end());
  return choose_nccl_settings(topology, all_ranks(topology), rank, variables);
}

Values values_of(const NcclSettings& settings) {
  Values values;
  for (const NcclVariable& one : settings.chosen) values[one.name] = one.value;
  return values;
}

std::string reason_of(const NcclSettings& settings, const std::string& name) {
  for (const NcclVariable& one : settings.chosen) {
    if (one.name == name) return one.reason;
  }
  return "";
}

TEST(NcclSettings, RailsBesideGpusWithoutWhatIsDownOrStorages) {
  const Topology topology = read("rails");
  for (const int rank : {1, 4, 8}) {
    const NcclSettings settings = choose(topology, rank);
    EXPECT_EQ(values_of(settings),
              (Values{{"NCCL_SOCKET_IFNAME", "=eth0"},
                      {"NCCL_IB_HCA", "=mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1"}}))
        << "the same on all ranks of a host";
    EXPECT_EQ(reason_of(settings, "NCCL_SOCKET_IFNAME"), "rank 0 is reached by it (10 Gb/s)");
    EXPECT_EQ(reason_of(settings, "NCCL_IB_HCA"),
              "they are the ports of InfiniBand that are up beside its GPUs (400 Gb/s), without "
              "mlx5_5:1 (down), mlx5_6:1 (Ethernet), mlx5_4:1 (beside no GPU)");
  }
}

TEST(NcclSettings, BothPortsOfACardAndNotTheSlowOne) {
  const Topology topology = read("dual-port");
  EXPECT_EQ(values_of(choose(topology, 1)),
            (Values{{"NCCL_SOCKET_IFNAME", "=eno1"}, {"NCCL_IB_HCA", "=mlx5_0:1,mlx5_0:2"}}));
  const NcclSettings second = choose(topology, 2);
  EXPECT_EQ(values_of(second)["NCCL_SOCKET_IFNAME"], "=eno2") << "hosts may name it differently";
  EXPECT_EQ(reason_of(second, "NCCL_SOCKET_IFNAME"), "rank 0 is reached by it") << "no rate known";
  EXPECT_NE(reason_of(second, "NCCL_IB_HCA").find("without mlx4_0:1 (40 Gb/s)"), std::string::npos);
}

TEST(NcclSettings, EthernetOnlyTakesTheFasterWayOfMpi) {
  Topology topology = read("ethernet");
  const NcclSettings settings = choose(topology, 3);
  EXPECT_EQ(values_of(settings), (Values{{"NCCL_SOCKET_IFNAME", "=ens5f0"}})) << "no port to name";
  EXPECT_EQ(reason_of(settings, "NCCL_SOCKET_IFNAME"),
            "MPI's connections between the hosts take it (25 Gb/s), and it is faster than eth0, by "
            "which rank 0 is reached");
  // One rank whose connections are not seen, or leave by several interfaces: all take the other.
  Topology unseen = topology;
  for (Link& link : *unseen.mutable_links()) {
    if (link.rank_a() == 1) link.clear_interface_a();
  }
  EXPECT_EQ(values_of(choose(unseen, 3))["NCCL_SOCKET_IFNAME"], "=eth0");
  topology.mutable_links(0)->set_interface_b("ens5f1");
  EXPECT_EQ(values_of(choose(topology, 1))["NCCL_SOCKET_IFNAME"], "=eth0");
}

// Else one host's NCCL would try InfiniBand, and the other's sockets.
TEST(NcclSettings, APortThatIsDownKeepsAllFromInfiniBand) {
  const Topology topology = read("port-down");
  for (const int rank : {1, 2}) {
    const NcclSettings settings = choose(topology, rank);
    EXPECT_EQ(values_of(settings),
              (Values{{"NCCL_SOCKET_IFNAME", "=eth0"}, {"NCCL_IB_DISABLE", "1"}}));
    EXPECT_NE(reason_of(settings, "NCCL_IB_DISABLE").find("not on b"), std::string::npos);
  }
}

TEST(NcclSettings, HostsOfAnotherLinkLayerDoNotMix) {
  Topology topology = read("port-down");
  NicInfo& port = *topology.mutable_nodes(1)->mutable_nics(0);
  port.set_state(NIC_STATE_ACTIVE);
  EXPECT_EQ(values_of(choose(topology, 2))["NCCL_IB_HCA"], "=mlx5_0:1");
  port.set_link_layer("Ethernet");
  EXPECT_EQ(values_of(choose(topology, 2)).count("NCCL_IB_DISABLE"), 1u);
}

TEST(NcclSettings, BondsAreNamedAsTheyAre) {
  const Topology topology = read("bond");
  const NcclSettings settings = choose(topology, 2);
  EXPECT_EQ(values_of(settings),
            (Values{{"NCCL_SOCKET_IFNAME", "=bond0.17"}, {"NCCL_IB_HCA", "=mlx5_bond_0:1"}}));
  EXPECT_EQ(reason_of(settings, "NCCL_IB_HCA"), "it is the port of RoCE that is up (50 Gb/s)");
}

TEST(NcclSettings, WhatStaysInsideAHostJoinsNoHosts) {
  for (const char* const inside : {"lo", "docker0", "virbr0", "veth1a2b"}) {
    Topology topology = read("dual-port");
    for (RankInfo& info : *topology.mutable_ranks()) info.set_interface(inside);
    EXPECT_EQ(values_of(choose(topology, 1)).count("NCCL_SOCKET_IFNAME"), 0u) << inside;
  }
  Topology topology = read("dual-port");
  topology.mutable_ranks(0)->set_interface("eth0,^ib");  // a rank may say anything
  EXPECT_EQ(values_of(choose(topology, 1)).count("NCCL_SOCKET_IFNAME"), 0u);
  topology.mutable_nodes(0)->mutable_nics(0)->set_name("mlx5_0,x");
  EXPECT_EQ(values_of(choose(topology, 1))["NCCL_IB_HCA"], "=mlx5_0:2");
}

TEST(NcclSettings, OneHostNeedsLoopbackOnly) {
  Topology topology = read("rails");
  for (RankInfo& info : *topology.mutable_ranks()) info.set_interface("lo");
  const NcclSettings settings = choose_nccl_settings(topology, {1, 2, 3, 4}, 2, {});
  EXPECT_EQ(values_of(settings), (Values{{"NCCL_SOCKET_IFNAME", "=lo"}}));
  EXPECT_EQ(reason_of(settings, "NCCL_SOCKET_IFNAME"), "all ranks are on one host");
}

TEST(NcclSettings, WhatTheUserHasSetWins) {
  const Topology topology = read("rails");
  const NcclSettings interface = choose(topology, 1, {{"NCCL_SOCKET_IFNAME", "ib0"}});
  EXPECT_EQ(values_of(interface).count("NCCL_SOCKET_IFNAME"), 0u);
  EXPECT_EQ(values_of(interface).count("NCCL_IB_HCA"), 1u);
  ASSERT_EQ(interface.by_user.size(), 1u);
  EXPECT_EQ(interface.by_user[0].value, "ib0");
  for (const char* const name : {"NCCL_IB_HCA", "NCCL_IB_DISABLE", "NCCL_NET", "NCCL_NET_PLUGIN"}) {
    const NcclSettings ports = choose(topology, 1, {{name, "mine"}});
    EXPECT_EQ(values_of(ports), (Values{{"NCCL_SOCKET_IFNAME", "=eth0"}})) << name;
  }
  // Their choice against InfiniBand stands where ours would have been the same.
  EXPECT_EQ(values_of(choose(read("port-down"), 1, {{"NCCL_IB_DISABLE", "0"}})),
            (Values{{"NCCL_SOCKET_IFNAME", "=eth0"}}));
}

TEST(NcclSettings, ALineForRanksThatAreAlike) {
  const Topology topology = read("dual-port");
  std::map<int, NcclSettings> settings{{1, choose(topology, 1, {{"NCCL_IB_HCA", "mlx5_0"}})},
                                       {2, choose(topology, 2)}};
  std::vector<std::string> lines = describe_nccl_settings(topology, settings);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0],
            "NCCL: rank 1 on a: NCCL_SOCKET_IFNAME=\"=eno1\" because rank 0 is reached by it (1 "
            "Gb/s); set by you: NCCL_IB_HCA=\"mlx5_0\"");
  const Topology rails = read("rails");
  settings.clear();
  for (const int rank : all_ranks(rails)) settings[rank] = choose(rails, rank);
  lines = describe_nccl_settings(rails, settings);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("NCCL: ranks 1 2 3 4 5 6 7 8 on a, b: NCCL_SOCKET_IFNAME"));
}

TEST(NcclSettings, OnlyTheseVariablesAreEverSet) {
  unsetenv("NCCL_IB_HCA");
  setenv("NCCL_SOCKET_IFNAME", "mine", 1);
  NcclVariables chosen;
  chosen["NCCL_SOCKET_IFNAME"] = "=eth0";
  chosen["NCCL_IB_HCA"] = "=mlx5_0:1";
  set_nccl_variables(chosen);
  EXPECT_STREQ(std::getenv("NCCL_SOCKET_IFNAME"), "mine") << "the user's wins here too";
  EXPECT_STREQ(std::getenv("NCCL_IB_HCA"), "=mlx5_0:1");
  unsetenv("NCCL_SOCKET_IFNAME");
  unsetenv("NCCL_IB_HCA");
  for (const auto& [name, value] :
       {std::pair{"TRIREME_ANY", "x"}, {"NCCL_NET_PLUGINS", "x"}, {"NCCL_IB_HCA", "a\nb"}}) {
    NcclVariables wrong;
    wrong[name] = value;
    EXPECT_THROW(set_nccl_variables(wrong), Error) << name;
    EXPECT_EQ(std::getenv(name), nullptr);
  }
}

TEST(NcclSettings, WhatRecordedStepsNeedIsSetWhereItIsNot) {
  setenv("NCCL_GRAPH_REGISTER", "1", 1);
  unsetenv("NCCL_GRAPH_MIXING_SUPPORT");
  set_nccl_variables({});
  EXPECT_STREQ(std::getenv("NCCL_GRAPH_REGISTER"), "1") << "the user's stands";
  EXPECT_STREQ(std::getenv("NCCL_GRAPH_MIXING_SUPPORT"), "1");
  unsetenv("NCCL_GRAPH_REGISTER");
  unsetenv("NCCL_GRAPH_MIXING_SUPPORT");
}

}  // namespace
}  // namespace trireme
