// SPDX-License-Identifier: Apache-2.0
#include "topology/host_group.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/models.h"
#include "topology/cost.h"
#include "topology/placement.h"
#include "topology/shard.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr double kNear = 4.5e-3, kFar = 10.5e-3, kFarthest = 14e-3;
constexpr double kFast = 30e6, kSlow = 7.5e6, kMemory = 2e9;

void join(Topology& topology, int32_t a, int32_t b, double latency_s, double bandwidth) {
  Link& link = *topology.add_links();
  link.set_rank_a(a);
  link.set_rank_b(b);
  link.mutable_speed()->set_link_class(bandwidth == kMemory ? LINK_CLASS_NODE : LINK_CLASS_NET);
  link.mutable_speed()->set_latency_s(latency_s);
  link.mutable_speed()->set_bandwidth_bytes_per_s(bandwidth);
}

// Ranks 1 and 2 on one host, 3 on another, 4 on one with a slow card.
Topology three_hosts() {
  Topology topology = make_topology(4, 8 * kGiB);
  topology.mutable_ranks(2)->set_host("h2");
  topology.mutable_ranks(3)->set_host("h3");
  join(topology, 1, 2, 2e-6, kMemory);
  for (const int32_t rank : {1, 2}) {
    join(topology, rank, 3, kNear, kFast);
    join(topology, rank, 4, kFar, kSlow);
  }
  join(topology, 3, 4, kFarthest, kSlow);
  return topology;
}

double reduce_s(const std::vector<int>& workers, double bytes) {
  const Topology topology = three_hosts();
  AllReduceTable table;
  *table.add_rows() = all_reduce_row(host_group(topology, LinkGraph(topology), workers));
  return all_reduce_s(table, static_cast<int32_t>(workers.size()), bytes);
}

// Everyone's message to everyone takes one trip, over the farthest pair, and what leaves a host
// leaves it one after the other.
TEST(HostGroup, ShortSumsTakeOneTrip) {
  const double bytes = 8192;
  EXPECT_NEAR(reduce_s({0, 2}, bytes), kNear + bytes / kFast, 1e-9);
  EXPECT_NEAR(reduce_s({2, 0}, bytes), kNear + bytes / kFast, 1e-9);
  EXPECT_NEAR(reduce_s({0, 2, 3}, bytes), kFarthest + 2 * bytes / kSlow, 1e-9);
  EXPECT_NEAR(reduce_s({0, 1, 2}, bytes), kNear + 2 * bytes / kFast, 1e-9);
  EXPECT_NEAR(reduce_s({3, 2, 1, 0}, bytes), kFarthest + 3 * bytes / kSlow, 1e-9);
}

TEST(HostGroup, RanksOfAHostShareItsCard) {
  Topology topology = make_topology(4, 8 * kGiB);
  for (const int worker : {2, 3}) topology.mutable_ranks(worker)->set_host("other");
  for (const int32_t a : {1, 2}) {
    for (const int32_t b : {3, 4}) join(topology, a, b, 1e-3, kFast);
  }
  join(topology, 1, 2, 2e-6, kMemory);
  join(topology, 3, 4, 2e-6, kMemory);
  const HostGroup group = host_group(topology, LinkGraph(topology), {0, 1, 2, 3});
  EXPECT_DOUBLE_EQ(group.latency_s, 1e-3);
  EXPECT_DOUBLE_EQ(group.exchange_byte_s, 4 / kFast);
  EXPECT_DOUBLE_EQ(group.gather_byte_s, 2 / kFast);
  EXPECT_DOUBLE_EQ(gather_s(group, 6000), 1e-3 + 2 * 6000 / kFast);
}

TEST(HostGroup, OfOneHost) {
  Topology topology = make_topology(3, 8 * kGiB);
  join(topology, 1, 2, 2e-6, kMemory);
  join(topology, 1, 3, 3e-6, kMemory);
  join(topology, 2, 3, 2e-6, kMemory);
  const HostGroup group = host_group(topology, LinkGraph(topology), {0, 1, 2});
  EXPECT_DOUBLE_EQ(group.latency_s, 3e-6);
  EXPECT_DOUBLE_EQ(group.exchange_byte_s, 2 / kMemory);
  EXPECT_DOUBLE_EQ(group.gather_byte_s, 2 / kMemory);
}

TEST(HostGroup, LongSumsTakeTwoTripsForEachSegment) {
  const double mib = 1 << 20;
  const double segment = 2 * (kNear + 4 * mib / 2 / kFast);
  EXPECT_NEAR(reduce_s({0, 2}, mib), 2 * (kNear + mib / 2 / kFast), 1e-9);
  EXPECT_NEAR(reduce_s({0, 2}, 4 * mib), segment, 1e-9);
  EXPECT_NEAR(reduce_s({0, 2}, 16 * mib), 4 * segment, 1e-6);
}

// A placement that a user names: one stage of three ranks on three hosts.
TEST(HostGroup, PlacementsAcrossHostsAreChargedForIt) {
  const ModelSpec model = smollm2();
  const Topology topology = three_hosts();
  Placement placement;
  placement.set_dtype("bf16");
  placement.set_max_sequences(1);
  StageSpec& stage = *placement.add_replicas()->add_stages();
  stage.mutable_layers()->set_end(model.num_layers());
  stage.set_has_embedding(true);
  stage.set_has_head(true);
  for (int32_t tp_rank = 0; tp_rank < 3; ++tp_rank) {
    *stage.add_shards() = make_shard(model, tp_rank, 3);
    stage.mutable_shards(tp_rank)->set_rank(tp_rank == 0 ? 1 : tp_rank + 2);
  }
  PlacementOptions options;
  options.objective = OBJECTIVE_LATENCY;
  options.assumptions = assumptions_of(topology);
  predict_times(topology, model, options, placement);
  const StagePrediction& predicted = placement.replicas(0).stages(0).predicted();
  const double row = 4.0 * model.hidden_size();
  const double sum_ms = 1e3 * (kFarthest + 2 * row / kSlow);
  const double sums_ms = 2 * model.num_layers() * sum_ms;
  EXPECT_NEAR(predicted.all_reduce_ms(), sums_ms, 0.005 * sums_ms);  // between two samples
  // The embedding's rows are summed too, and a third of the logits comes from each.
  const double gather_ms = 1e3 * (kFarthest + 4.0 * model.vocab_size() / 3 / kSlow);
  EXPECT_GT(predicted.decode_ms(), predicted.all_reduce_ms() + sum_ms + gather_ms);
  EXPECT_LT(predicted.decode_ms(), predicted.all_reduce_ms() + sum_ms + gather_ms + 60);
}

}  // namespace
}  // namespace trireme
