// SPDX-License-Identifier: Apache-2.0
// The planner on random small clusters: against brute force, and properties that must hold
// anywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "kernels/base/error.h"
#include "tests/support/brute_force.h"
#include "tests/support/clusters.h"
#include "tests/support/models.h"
#include "topology/regions.h"
#include "topology/search.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

struct Instance {
  Topology topology;
  ModelSpec model;
  PlacementOptions options;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(engine_); }
  double log_uniform(double least, double most) {
    return least *
           std::exp(std::uniform_real_distribution<double>(0, std::log(most / least))(engine_));
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

LinkSpeed random_link(Random& random, double least_bandwidth, double most_bandwidth) {
  LinkSpeed link;
  link.set_latency_s(random.log_uniform(3e-6, 3e-4));
  link.set_bandwidth_bytes_per_s(random.log_uniform(least_bandwidth, most_bandwidth));
  return link;
}

void add_table(Random& random, const std::string& name, Topology& topology) {
  AllReduceTable& table = *topology.add_all_reduce_tables();
  table.set_name(name);
  double alpha = random.log_uniform(4e-6, 4e-5), bus = random.log_uniform(2e9, 3e11);
  for (int32_t tp = 2; tp <= 8; tp *= 2) {
    AllReduceRow& row = *table.add_rows();
    row.set_tp(tp);
    row.set_alpha_s(alpha);
    row.set_bus_bytes_per_s(bus);
    alpha *= 1 + random.below(3) * 0.3;
    bus *= 1 - random.below(4) * 0.15;
  }
}

// Up to three kinds of device on up to three hosts; islands of one kind or two.
Instance random_instance(uint64_t seed, int devices) {
  static const char* const kTypes[] = {"H100", "A100", "L40S", "V100", "A10", "T4", "R3090", "L4"};
  static const std::map<std::string, double> kMemory = {
      {"H100", 80e9}, {"A100", 80e9}, {"L40S", 48e9},  {"V100", 32e9},
      {"A10", 24e9},  {"T4", 16e9},   {"R3090", 24e9}, {"L4", 24e9}};
  Random random(seed);
  Instance instance;
  const int kinds = 1 + random.below(3), hosts = 1 + random.below(3);
  std::vector<std::string> types;
  for (int i = 0; i < kinds; ++i) types.push_back(kTypes[random.below(8)]);
  Topology& topology = instance.topology;
  add_table(random, "fast", topology);
  add_table(random, "slow", topology);
  for (int rank = 1; rank <= devices; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    DeviceInfo& device = *info.mutable_device();
    device.set_kind(DEVICE_KIND_CUDA);
    device.set_type(types[static_cast<size_t>(random.below(kinds))]);
    device.set_memory_bytes(static_cast<uint64_t>(kMemory.at(device.type())));
  }
  for (int rank = 1; rank <= devices;) {
    const int size = std::min(devices - rank + 1, 1 + random.below(4));
    const std::string host = "host" + std::to_string(random.below(hosts));
    Island island;
    for (int i = 0; i < size; ++i, ++rank) {
      topology.mutable_ranks(rank - 1)->set_host(host);
      // Mostly of one kind.
      if (i > 0 && random.below(4) > 0) {
        *topology.mutable_ranks(rank - 1)->mutable_device() = topology.ranks(rank - 2).device();
      }
      island.add_ranks(rank);
    }
    *island.mutable_link() = random_link(random, 1e9, 3e11);
    if (random.below(4) > 0) island.set_all_reduce_table(random.below(2) ? "fast" : "slow");
    *topology.add_islands() = island;
  }
  std::set<std::string> names;
  for (const RankInfo& rank : topology.ranks()) names.insert(rank.host());
  for (const std::string& host : names) {
    NodeInfo& node = *topology.add_nodes();
    node.set_host(host);
    *node.mutable_between_islands() = random_link(random, 5e8, 5e10);
  }
  for (auto a = names.begin(); a != names.end(); ++a) {
    for (auto b = std::next(a); b != names.end(); ++b) {
      NetworkLink& link = *topology.add_network();
      link.set_a(*a);
      link.set_b(*b);
      *link.mutable_speed() = random_link(random, 5e7, 3e10);
    }
  }
  const bool large = random.below(2) == 0;
  instance.model = large ? make_model(80, 64, 8, 128, 28672, 128256) : chatglm3();
  PlacementOptions& options = instance.options;
  options.load = {64 << random.below(5), 32 << random.below(4)};
  options.batches = {1, 4, 16, 64};
  options.limit_sequences = false;
  if (random.below(2)) options.tpot_limit_s = random.log_uniform(0.03, 2);
  options.assumptions.exact_bytes = false;
  options.assumptions.detailed = false;
  options.assumptions.chunk_tokens = 512;
  return instance;
}

// Requests/s of the plan; 0 where it is refused.
double planned(const Instance& instance) {
  try {
    const Placement placement = plan_placement(instance.topology, instance.model, instance.options);
    if (placement.predicted().method() == "by memory") return 0;
    validate_placement(instance.topology, instance.model, placement);
    EXPECT_EQ(placement.predicted().gap(), 0);
    return placement.predicted().value();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kResourceExhausted) << error.what();
    return 0;
  }
}

void compare(uint64_t first_seed, int instances, int least_devices, int most_devices) {
  int exact = 0, feasible = 0;
  double worst = 1;
  for (int i = 0; i < instances; ++i) {
    const uint64_t seed = first_seed + static_cast<uint64_t>(i);
    const int devices = least_devices + i % (most_devices - least_devices + 1);
    const Instance instance = random_instance(seed, devices);
    const double best = brute_force_throughput(instance.topology, instance.model, instance.options);
    const double value = planned(instance);
    if (best == 0) {
      EXPECT_EQ(value, 0) << "seed " << seed;
      ++exact;
      continue;
    }
    ++feasible;
    const double ratio = value / best;
    EXPECT_LE(ratio, 1 + 1e-6) << "seed " << seed << ": better than everything that was tried";
    EXPECT_GE(ratio, 0.98) << "seed " << seed;
    exact += ratio >= 0.999;
    worst = std::min(worst, ratio);
  }
  const double share = double(exact) / instances;
  std::printf(
      "{\"bar\": \"plan over brute force, worst of %d (%d feasible), %d-%d devices\", \"value\": "
      "%.6f, \"target\": \">= 0.98\", \"ok\": %s}\n",
      instances, feasible, least_devices, most_devices, worst, worst >= 0.98 ? "true" : "false");
  std::printf(
      "{\"bar\": \"share of instances within 0.1 %% of brute force\", \"value\": %.4f, "
      "\"target\": \">= 0.95\", \"ok\": %s}\n",
      share, share >= 0.95 ? "true" : "false");
  EXPECT_GE(share, 0.95);
  EXPECT_GE(feasible, instances / 4);
}

TEST(PlannerAgainstBruteForce, HundredOfTwoToSix) { compare(1, 100, 2, 6); }

TEST(PlannerAgainstBruteForce, NineHundredOfTwoToSix) {
  if (TRIREME_LONG_TESTS == 0) GTEST_SKIP() << "tests/run --long";
  compare(1, 900, 2, 6);
}

TEST(PlannerAgainstBruteForce, HundredOfSevenAndEight) {
  if (TRIREME_LONG_TESTS == 0) GTEST_SKIP() << "tests/run --long";
  compare(10'001, 100, 7, 8);
}

TEST(PlannerProperties, BetterLinksAreNeverSlower) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Instance instance = random_instance(seed, 2 + static_cast<int>(seed % 6));
    const double before = planned(instance);
    const auto improve = [](LinkSpeed& link) {
      link.set_latency_s(link.latency_s() / 3);
      link.set_bandwidth_bytes_per_s(link.bandwidth_bytes_per_s() * 3);
    };
    for (Island& island : *instance.topology.mutable_islands()) improve(*island.mutable_link());
    for (NodeInfo& node : *instance.topology.mutable_nodes()) {
      improve(*node.mutable_between_islands());
    }
    for (NetworkLink& link : *instance.topology.mutable_network()) improve(*link.mutable_speed());
    for (AllReduceTable& table : *instance.topology.mutable_all_reduce_tables()) {
      for (AllReduceRow& row : *table.mutable_rows()) row.set_alpha_s(row.alpha_s() / 2);
    }
    EXPECT_GE(planned(instance), before * (1 - 1e-9)) << "seed " << seed;
  }
}

TEST(PlannerProperties, APermutationOfDevicesChangesNothing) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const Instance instance = random_instance(seed, 2 + static_cast<int>(seed % 6));
    Instance other = instance;
    const int devices = instance.topology.ranks_size();
    std::vector<int32_t> to(static_cast<size_t>(devices));
    std::iota(to.begin(), to.end(), 1);
    Random random(seed + 99);
    std::shuffle(to.begin(), to.end(), random.engine());
    for (int i = 0; i < devices; ++i) {
      RankInfo& rank = *other.topology.mutable_ranks(to[static_cast<size_t>(i)] - 1);
      rank = instance.topology.ranks(i);
      rank.set_rank(to[static_cast<size_t>(i)]);
    }
    for (Island& island : *other.topology.mutable_islands()) {
      for (int32_t& rank : *island.mutable_ranks()) rank = to[static_cast<size_t>(rank - 1)];
    }
    EXPECT_NEAR(planned(other), planned(instance), 1e-9 * planned(instance)) << "seed " << seed;
  }
}

// Regions take hops for the best that they can be: what is searched over them is never less than
// what brute force finds.
TEST(PlannerProperties, RegionsHideNoBetterPlan) {
  int divisions = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const Instance instance = random_instance(seed, 3 + static_cast<int>(seed % 3));
    const PlacementOptions& options = instance.options;
    const LinkGraph links(instance.topology);
    const ModelCost cost = model_cost(instance.model, options.dtype, options.assumptions);
    for (const Regions& regions : find_regions(instance.topology, links, options, cost)) {
      PlannerInput input =
          make_problem(instance.topology, links, instance.model, options, false, regions);
      fill_region_hops(links, options, regions, input);
      const auto vectors = CountVectors::make(input.problem, 100'000);
      ASSERT_TRUE(vectors);
      const double best = brute_force_throughput(instance.topology, instance.model, options);
      EXPECT_GE(exact_throughput(input.problem, *vectors).value, best * (1 - 1e-9))
          << "seed " << seed;
      ++divisions;
    }
  }
  EXPECT_GE(divisions, 20);
}

// A rack as one island: nobody lists its millions of multisets to find that they are too many.
TEST(CountVectors, OfALargeIslandAreNotListed) {
  SearchProblem problem;
  Pool& pool = problem.pools.emplace_back();
  pool.islands = {{96, 1}};
  for (int32_t tp = 1; tp <= 8; ++tp) {
    pool.types.push_back(static_cast<int>(problem.types.size()));
    problem.types.emplace_back().tp = tp;
  }
  const Stopwatch stopwatch(1);
  EXPECT_FALSE(CountVectors::make(problem, 20'000));
  EXPECT_FALSE(stopwatch.over()) << stopwatch.elapsed_s();
}

// With the worker's own bytes: every layer once (validate_placement), memory kept on every rank.
TEST(PlannerProperties, EveryPlanFitsItsMemory) {
  int placed = 0;
  for (uint64_t seed = 1; seed <= 80; ++seed) {
    Instance instance = random_instance(seed, 2 + static_cast<int>(seed % 7));
    instance.options.assumptions = {};
    instance.options.max_sequences = 64;
    instance.options.limit_sequences = true;
    instance.options.batches.clear();
    Placement placement;
    try {
      placement = plan_placement(instance.topology, instance.model, instance.options);
    } catch (const Error&) {
      continue;
    }
    ++placed;
    EXPECT_NO_THROW(validate_placement(instance.topology, instance.model, placement));
    EXPECT_NO_THROW(check_memory(instance.topology, placement)) << "seed " << seed;
    for (const ReplicaSpec& replica : placement.replicas()) {
      EXPECT_LE(replica.micro_batches() * replica.sequences_per_micro_batch(), 64);
      EXPECT_LE(replica.predicted().tpot_ms(),
                1e3 * instance.options.tpot_limit_s.value_or(1e9) * 1.05);
    }
  }
  EXPECT_GE(placed, 20);
}

TEST(PlannerProperties, ADegradedDeviceIsAClassOfItsOwn) {
  // One of eight GPUs computes at a third: no tensor-parallel group waits for it.
  const auto clusters = named_clusters();
  const auto found =
      std::find_if(clusters.begin(), clusters.end(),
                   [](const NamedCluster& cluster) { return cluster.name.rfind("07", 0) == 0; });
  ASSERT_NE(found, clusters.end());
  Topology topology = found->topology;
  DeviceInfo& slow = *topology.mutable_ranks(3)->mutable_device();
  slow.set_degraded(true);
  slow.set_degraded_reason("clocks at a third of its siblings'");
  slow.mutable_speed()->set_flops_16bit_per_s(120e12);
  slow.mutable_speed()->set_memory_bandwidth_bytes_per_s(290e9);
  const Placement placement = plan_placement(topology, found->model, found->options);
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const StageSpec& stage : replica.stages()) {
      for (const ShardSpec& shard : stage.shards()) {
        if (shard.rank() == 4) {
          EXPECT_EQ(stage.shards_size(), 1);
        }
      }
    }
  }
  EXPECT_EQ(placement.predicted().gap(), 0);
}

TEST(PlannerNamed, ReferencesUpTo24Devices) {
  for (const NamedCluster& cluster : named_clusters()) {
    if (cluster.devices() > 24) continue;
    const Placement placement = plan_placement(cluster.topology, cluster.model, cluster.options);
    EXPECT_NEAR(placement.predicted().value() / cluster.requests_per_s, 1, 1e-5) << cluster.name;
    EXPECT_NEAR(placement.predicted().requests_per_s() / cluster.requests_per_s, 1, 1e-5)
        << cluster.name << ": predicted stage by stage";
    EXPECT_EQ(placement.predicted().gap(), 0) << cluster.name;
    EXPECT_NO_THROW(validate_placement(cluster.topology, cluster.model, placement));
    EXPECT_FALSE(placement.predicted().runner_up().reason().empty());
  }
}

TEST(PlannerNamed, ReplansAfterALossKeepingWhatIsWhole) {
  for (const NamedCluster& cluster : named_clusters()) {
    if (cluster.name.rfind("01", 0) != 0) continue;
    const Placement old = plan_placement(cluster.topology, cluster.model, cluster.options);
    ASSERT_EQ(old.replicas_size(), 4);
    Topology topology = cluster.topology;
    topology.mutable_ranks()->RemoveLast();
    Island& last = *topology.mutable_islands(1);
    last.mutable_ranks()->RemoveLast();
    const Placement placement = replan_placement(topology, cluster.model, cluster.options, old);
    EXPECT_NO_THROW(validate_placement(topology, cluster.model, placement));
    for (int stage = 0; stage < 2; ++stage) {
      EXPECT_EQ(placement.replicas(0).stages(stage).shards(0).rank(),
                old.replicas(0).stages(stage).shards(0).rank());
      EXPECT_EQ(placement.replicas(0).stages(stage).layers().end(),
                old.replicas(0).stages(stage).layers().end());
    }
    EXPECT_GE(placement.predicted().value(), 0.74 * old.predicted().value());
    EXPECT_LT(placement.predicted().gap(), 0.34);
  }
}

}  // namespace
}  // namespace trireme
