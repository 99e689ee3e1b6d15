// SPDX-License-Identifier: Apache-2.0
// Machines as a Topology: islands, links, rails, network.
#include "topology/machine_topology.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "kernels/base/error.h"
#include "topology/topology.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

const std::string kShared = TRIREME_SOURCE_DIR "/../shared/data/topologies/";
const std::string kOurs = TRIREME_SOURCE_DIR "/tests/data/topologies/";

using Ranks = std::vector<int32_t>;

Ranks ranks_of(const Island& island) { return {island.ranks().begin(), island.ranks().end()}; }

std::set<Ranks> islands_of(const Topology& topology) {
  std::set<Ranks> islands;
  for (const Island& island : topology.islands()) {
    Ranks ranks = ranks_of(island);
    std::sort(ranks.begin(), ranks.end());
    islands.insert(ranks);
  }
  return islands;
}

std::string refusal(const std::vector<std::string>& paths) {
  try {
    read_topology_files(paths);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(MachineTopology, AGpuWithoutItsLinksIsAlone) {
  const Topology topology = read_topology_files({kOurs + "hgx-4gpu-one-lost.xml"});
  ASSERT_EQ(topology.ranks_size(), 4);
  EXPECT_EQ(topology.ranks(0).host(), "hgx-4gpu-one-lost");
  EXPECT_EQ(islands_of(topology), (std::set<Ranks>{{1, 2, 4}}));
  EXPECT_EQ(topology.islands(0).link().nvlinks(), 18);
  EXPECT_EQ(topology.islands(0).all_reduce_table(), "nvs4");
  EXPECT_EQ(topology.ranks(2).device().degraded_reason(), "none of its 18 NVLinks is up");
  EXPECT_TRUE(topology.ranks(3).device().degraded()) << "half of the siblings' PCIe";
  EXPECT_FALSE(topology.ranks(0).device().degraded());
  EXPECT_EQ(topology.nodes(0).between_islands().link_class(), LINK_CLASS_SYS);
  ASSERT_EQ(topology.links_size(), 1) << "GPU 2 and 3 share a switch";
  EXPECT_EQ(topology.links(0).rank_a(), 3);
  EXPECT_EQ(topology.links(0).speed().link_class(), LINK_CLASS_PIX);
}

struct Expected {
  const char* path;
  int ranks, nodes;
  std::set<Ranks> islands;
  const char* table;
};
class SharedTopology : public testing::TestWithParam<Expected> {};

TEST_P(SharedTopology, HasItsIslands) {
  const std::string path = kShared + GetParam().path;
  if (!fs::exists(path)) GTEST_SKIP() << "../shared is absent";
  const Topology topology = read_topology_files({path});
  EXPECT_EQ(topology.ranks_size(), GetParam().ranks);
  EXPECT_EQ(topology.nodes_size(), GetParam().nodes);
  EXPECT_EQ(islands_of(topology), GetParam().islands);
  if (topology.islands_size() > 0) {
    EXPECT_EQ(topology.islands(0).all_reduce_table(), GetParam().table);
  }
  // What is printed is read again.
  EXPECT_EQ(topology_to_json(topology_from_json(topology_to_json(topology))),
            topology_to_json(topology));
}

INSTANTIATE_TEST_SUITE_P(
    Files, SharedTopology,
    testing::Values(
        Expected{"aws/p4d-24xl-topo.xml", 8, 1, {{1, 2}, {3, 4}, {5, 6}, {7, 8}}, "pcie3"},
        Expected{"azure/ncv4-topo.xml", 4, 1, {{1, 2, 3, 4}}, "pcie3"},
        Expected{"azure/ndv5-topo.xml", 8, 1, {{1, 2, 3, 4}, {5, 6, 7, 8}}, "pcie5"},
        Expected{"captured/hgx-h200-8x-nccl_topo.xml", 8, 1, {{1, 2, 3, 4, 5, 6, 7, 8}}, "nvs4"},
        Expected{"captured/perlmutter-4xa100-slingshot-nccl_topo.xml",
                 4,
                 1,
                 {{1, 2, 3, 4}},
                 "nvlink-mesh-100-4"},
        Expected{"community-bsd/8x3090-pciswitch-fdr56.xml",
                 8,
                 1,
                 {{1, 2, 3, 4}, {5, 6, 7, 8}},
                 "pcie4sw"},
        Expected{"hwloc/power8gpudistances.xml", 4, 1, {{1, 2}, {3, 4}}, "nvl2"},
        Expected{"rccl/topo_4p3l_n4.xml", 8, 1, {{1, 3, 4, 6}, {2, 5, 7, 8}}, "xgmi-mesh-25-4"},
        Expected{"topograph/nvl72.yaml", 0, 72, {}, ""},
        Expected{"topograph/ibnetdiscover-ndr-dgx.out", 0, 122, {}, ""},
        Expected{"nvml-mock/l40s.yaml", 8, 1, {{1, 2, 5, 6}, {3, 4, 7, 8}}, "pcie4"}),
    [](const auto& test) {
      std::string name = test.param.path;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
      return name;
    });

// In the cube mesh pairs with two links stand side by side, and fours of one socket.
TEST(MachineTopology, IslandsAreInOrderOfNearness) {
  const std::string path = kShared + "go-gpuallocator/dgx1-volta-pascal-links.go.txt";
  if (!fs::exists(path)) GTEST_SKIP() << "../shared is absent";
  const Topology topology = read_topology_files({path});
  ASSERT_EQ(topology.nodes_size(), 3);
  ASSERT_EQ(topology.islands_size(), 4) << "two bridged pairs, two cube meshes";
  EXPECT_EQ(ranks_of(topology.islands(0)), (Ranks{1, 4}));
  EXPECT_EQ(ranks_of(topology.islands(1)), (Ranks{2, 3}));
  const Ranks volta = ranks_of(topology.islands(3));
  ASSERT_EQ(volta.size(), 8u);
  const std::set<std::set<int32_t>> kTwoLinks = {{13, 16}, {13, 17}, {14, 15}, {14, 18},
                                                 {15, 16}, {17, 20}, {18, 19}, {19, 20}};
  for (size_t i = 0; i < 8; i += 2) {
    EXPECT_TRUE(kTwoLinks.contains({volta[i], volta[i + 1]})) << volta[i] << " " << volta[i + 1];
  }
}

TEST(MachineTopology, RailsAndNics) {
  const std::string path = kShared + "captured/perlmutter-4xa100-slingshot-nccl_topo.xml";
  if (!fs::exists(path)) GTEST_SKIP() << "../shared is absent";
  const Topology topology = read_topology_files({path});
  std::set<int32_t> rails;
  for (const RankInfo& rank : topology.ranks()) {
    ASSERT_TRUE(rank.device().has_rail());
    for (const NicInfo& nic : topology.nodes(0).nics()) {
      const std::string wanted = "cxi" + std::to_string(3 - rank.device().index());
      EXPECT_EQ(nic.rail() == rank.device().rail(), nic.name() == wanted) << nic.name();
    }
    rails.insert(rank.device().rail());
  }
  EXPECT_EQ(rails.size(), 4u);
}

TEST(MachineTopology, SeveralFilesAreOneCluster) {
  const std::string box = kOurs + "hgx-4gpu-one-lost.xml";
  const Topology topology = read_topology_files({box, kOurs + "two-sockets-hwloc.xml", box});
  EXPECT_EQ(topology.ranks_size(), 10);
  std::vector<std::string> hosts;
  for (const NodeInfo& node : topology.nodes()) hosts.push_back(node.host());
  EXPECT_EQ(hosts,
            (std::vector<std::string>{"hgx-4gpu-one-lost", "made-up", "hgx-4gpu-one-lost-2"}));
  // The slowest for all, more between the fast ones: the hwloc file knows no rate.
  ASSERT_EQ(topology.network_size(), 4);
  EXPECT_EQ(topology.network(0).speed().nominal_bandwidth_bytes_per_s(), 1.25e9);
  EXPECT_EQ(topology.nodes(0).group(), "nodes of 400 Gb/s");
  // As JSON beside another file the ranks go on counting.
  const std::string json = testing::TempDir() + "/boxes.json";
  std::ofstream(json) << topology_to_json(topology);
  const Topology more = read_topology_files({kOurs + "four-gpus-profile.yaml", json});
  EXPECT_EQ(more.ranks_size(), 14);
  EXPECT_EQ(more.islands_size(), 1 + topology.islands_size());
  EXPECT_EQ(more.ranks(13).rank(), 14);
  EXPECT_NE(refusal({json, json}).find("is in a file before it"), std::string::npos);
}

TEST(MachineTopology, AFabricFileGivesItsSwitches) {
  const std::string box = testing::TempDir() + "/node-2.xml";
  fs::copy_file(kOurs + "hgx-4gpu-one-lost.xml", box, fs::copy_options::overwrite_existing);
  const Topology topology = read_topology_files({box, kOurs + "two-leaves-ibnetdiscover.txt"});
  ASSERT_EQ(topology.nodes_size(), 3);
  EXPECT_EQ(topology.nodes(0).host(), "node-2");
  EXPECT_EQ(topology.nodes(0).group(), "leaf-a");
  EXPECT_EQ(topology.ranks_size(), 4);
}

TEST(MachineTopology, BadFilesAreNamed) {
  EXPECT_NE(refusal({"/does/not/exist.xml"}).find("cannot open the topology /does/not/exist.xml"),
            std::string::npos);
  const std::string path = testing::TempDir() + "/bad.json";
  std::ofstream(path) << R"({"ranks": [{"rank": 1}, {"rank": 1}]})";
  EXPECT_NE(refusal({path}).find("bad.json"), std::string::npos) << refusal({path});
}

}  // namespace
}  // namespace trireme
