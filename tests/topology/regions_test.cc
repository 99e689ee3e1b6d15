// SPDX-License-Identifier: Apache-2.0
// Sites with slow links between them: devices counted by site, crossed seldom, over the best links.
#include "topology/regions.h"

#include <gtest/gtest.h>

#include "tests/support/models.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr int kHosts = 7;  // of each of two sites, with a device each

LinkSpeed speed(double latency_s, double bandwidth) {
  LinkSpeed link;
  link.set_latency_s(latency_s);
  link.set_bandwidth_bytes_per_s(bandwidth);
  return link;
}

int site_of(int32_t rank) { return rank <= kHosts ? 0 : 1; }

// Ranks 1 to 7 and 8 to 14. Of the links between the sites that of ranks 3 and 12 is the best.
Topology two_sites(double memory_bytes) {
  Topology topology;
  for (int32_t rank = 1; rank <= 2 * kHosts; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host("host" + std::to_string(rank));
    info.mutable_device()->set_kind(DEVICE_KIND_CUDA);
    info.mutable_device()->set_type("A10");
    info.mutable_device()->set_memory_bytes(static_cast<uint64_t>(memory_bytes));
    topology.add_nodes()->set_host(info.host());
    for (int32_t other = 1; other < rank; ++other) {
      Link& link = *topology.add_links();
      link.set_rank_a(other);
      link.set_rank_b(rank);
      const bool near = site_of(other) == site_of(rank);
      const double far = other == 3 && rank == 12 ? 15e6 : 10e6 + 1e5 * ((other * 7 + rank) % 40);
      *link.mutable_speed() = near ? speed(1e-4, 1.2e9 + 1e6 * rank) : speed(20e-3, far);
    }
  }
  return topology;
}

PlacementOptions options() {
  PlacementOptions options;
  options.load = {512, 128};
  options.batches = {1, 4, 16};
  options.limit_sequences = false;
  options.assumptions.exact_bytes = false;
  options.assumptions.detailed = false;
  return options;
}

const ModelSpec& large() {
  static const ModelSpec model = make_model(80, 64, 8, 128, 28672, 128256);
  return model;
}

std::vector<int32_t> first_ranks_of(const ReplicaSpec& replica) {
  std::vector<int32_t> ranks;
  for (const StageSpec& stage : replica.stages()) ranks.push_back(stage.shards(0).rank());
  return ranks;
}

TEST(Regions, AreFoundAtTheCliff) {
  const Topology topology = two_sites(20e9);
  const LinkGraph links(topology);
  const ModelCost cost = model_cost(large(), DType::kBF16, options().assumptions);
  const std::vector<Regions> divisions = find_regions(topology, links, options(), cost);
  ASSERT_EQ(divisions.size(), 1u);
  for (int32_t rank = 1; rank <= 2 * kHosts; ++rank) {
    EXPECT_EQ(divisions[0][static_cast<size_t>(rank - 1)], site_of(rank));
  }
}

TEST(Regions, NoneWhereLinksAreMuchTheSame) {
  Topology topology = two_sites(20e9);
  for (Link& link : *topology.mutable_links()) {
    *link.mutable_speed() = speed(1e-4, 1e9 + 1e7 * (link.rank_a() + link.rank_b()));
  }
  const LinkGraph links(topology);
  const ModelCost cost = model_cost(large(), DType::kBF16, options().assumptions);
  EXPECT_TRUE(find_regions(topology, links, options(), cost).empty());
}

TEST(Regions, AReplicaThatNeedsBothSitesCrossesOnceOverTheBestLink) {
  const Topology topology = two_sites(20e9);  // a site holds 56 layers of 80
  const Placement placement = plan_placement(topology, large(), options());
  EXPECT_NO_THROW(validate_placement(topology, large(), placement));
  ASSERT_EQ(placement.replicas_size(), 1);
  const std::vector<int32_t> ranks = first_ranks_of(placement.replicas(0));
  std::vector<std::pair<int32_t, int32_t>> crossings;
  for (size_t k = 0; k + 1 < ranks.size(); ++k) {
    if (site_of(ranks[k]) != site_of(ranks[k + 1])) {
      crossings.push_back(std::minmax(ranks[k], ranks[k + 1]));
    }
  }
  ASSERT_EQ(crossings.size(), 1u);
  EXPECT_EQ(crossings[0], (std::pair<int32_t, int32_t>(3, 12)));
  // The bound is of the best links, which it has.
  EXPECT_LT(placement.predicted().gap(), 1e-3);
}

TEST(Regions, ReplicasThatFitASiteStayThere) {
  const Topology topology = two_sites(32e9);
  const Placement placement = plan_placement(topology, large(), options());
  ASSERT_EQ(placement.replicas_size(), 2);
  for (const ReplicaSpec& replica : placement.replicas()) {
    const std::vector<int32_t> ranks = first_ranks_of(replica);
    for (const int32_t rank : ranks) EXPECT_EQ(site_of(rank), site_of(ranks[0]));
  }
  EXPECT_LT(placement.predicted().gap(), 1e-3);
}

TEST(Regions, OneStreamAloneCrossesNoMoreThanItMust) {
  const Topology topology = two_sites(20e9);
  PlacementOptions alone = options();
  alone.objective = OBJECTIVE_LATENCY;
  const Placement placement = plan_placement(topology, large(), alone);
  const std::vector<int32_t> ranks = first_ranks_of(placement.replicas(0));
  int crossings = 0;
  for (size_t k = 0; k + 1 < ranks.size(); ++k) {
    crossings += site_of(ranks[k]) != site_of(ranks[k + 1]);
  }
  EXPECT_EQ(crossings, 1);
}

}  // namespace
}  // namespace trireme
