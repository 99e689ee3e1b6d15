// SPDX-License-Identifier: Apache-2.0
#include "topology/placement.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <string>

#include "kernels/base/error.h"
#include "tests/support/models.h"
#include "topology/device_map.h"
#include "topology/memory.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

PlacementOptions degrees(int32_t tp, int32_t pp, int32_t dp) {
  PlacementOptions options;
  options.tp = tp;
  options.pp = pp;
  options.dp = dp;
  return options;
}

std::string refusal(const std::function<void()>& attempt) {
  try {
    attempt();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Placement, EveryDegreeIsValid) {
  for (const ModelSpec& model : {smollm2(), chatglm3()}) {
    for (int tp = 1; tp <= 5; ++tp) {
      for (int pp = 1; pp <= 5; ++pp) {
        for (int dp = 1; dp <= 2; ++dp) {
          const Topology topology = make_topology(tp * pp * dp + 1, 64 * kGiB);
          const Placement placement = plan_placement(topology, model, degrees(tp, pp, dp));
          EXPECT_NO_THROW(validate_placement(topology, model, placement));
          EXPECT_EQ(placement.replicas_size(), dp);
          EXPECT_EQ(placement.spare_ranks_size(), 1);
        }
      }
    }
  }
}

TEST(Placement, DefaultIsOneStageAWorker) {
  const Topology topology = make_topology(2, 16 * kGiB);
  const Placement placement = plan_placement(topology, smollm2(), {});
  ASSERT_EQ(placement.replicas_size(), 1);
  ASSERT_EQ(placement.replicas(0).stages_size(), 2);
  // The head costs as much as some layers: the last stage has fewer of them.
  EXPECT_GE(placement.replicas(0).stages(0).layers().end(), 16);
  EXPECT_LE(placement.replicas(0).stages(0).layers().end(), 19);
}

// Equal speed shares the layers equally, until one of them has no room for its share.
TEST(Placement, LayersFollowSpeedWithinMemory) {
  Topology topology = make_topology(2, 5 * kGiB);
  topology.mutable_ranks(1)->mutable_device()->set_memory_bytes(24 * kGiB);
  const Placement placement = plan_placement(topology, chatglm3(), {});
  const ReplicaSpec& replica = placement.replicas(0);
  ASSERT_EQ(replica.stages_size(), 2);
  const StageSpec& small = replica.stages(replica.stages(0).shards(0).rank() == 1 ? 0 : 1);
  EXPECT_GE(length(small.layers()), 5);
  EXPECT_LE(length(small.layers()), 11);
}

TEST(Placement, MoreRanksThanTheJobHasIsRefused) {
  const std::string message =
      refusal([] { plan_placement(make_topology(2, kGiB), smollm2(), degrees(2, 2, 1)); });
  EXPECT_NE(message.find("needs 4 workers, the job has 2"), std::string::npos) << message;
}

// Their product is more than 64 bits hold.
TEST(Placement, DegreesWithoutBoundAreRefused) {
  for (const int32_t pp : {1, 2, 4, 1 << 10, INT32_MAX}) {
    const std::string message = refusal([&] {
      plan_placement(make_topology(2, 64 * kGiB), smollm2(), degrees(INT32_MAX, pp, INT32_MAX));
    });
    EXPECT_NE(message.find("workers, the job has 2"), std::string::npos) << message;
  }
}

TEST(Placement, TooLittleMemoryNamesRankAndBytes) {
  const std::string message =
      refusal([] { plan_placement(make_topology(1, 4 * kGiB), chatglm3(), {}); });
  EXPECT_NE(message.find("rank 1 (node) needs"), std::string::npos) << message;
  EXPECT_NE(message.find("it has 4.0 GiB"), std::string::npos) << message;
}

TEST(Placement, MaxMemoryLimitsAndItsKeysAreChecked) {
  PlacementOptions options;
  options.max_memory_bytes["0"] = kGiB;
  EXPECT_NE(refusal([&] { plan_placement(make_topology(1, 64 * kGiB), chatglm3(), options); }), "");
  options.max_memory_bytes = {{"7", kGiB}};
  const std::string message =
      refusal([&] { plan_placement(make_topology(1, 64 * kGiB), smollm2(), options); });
  EXPECT_NE(message.find("no worker is called 7"), std::string::npos) << message;
}

TEST(Placement, AContextBeyondTheModelsIsRefused) {
  PlacementOptions options;
  options.context = 8193;
  const std::string message =
      refusal([&] { plan_placement(make_topology(1, 64 * kGiB), smollm2(), options); });
  EXPECT_NE(message.find("--context is 8193, test was made for 1 to 8192"), std::string::npos)
      << message;
}

TEST(Placement, BlocksHoldOneSequenceAtLeastAndAllAtMost) {
  const Placement roomy = plan_placement(make_topology(1, 256 * kGiB), smollm2(), {});
  EXPECT_EQ(roomy.num_blocks(), 8192 / 16 * 32);
  const Placement narrow = plan_placement(make_topology(1, kGiB), smollm2(), {});
  EXPECT_LT(narrow.num_blocks(), roomy.num_blocks());
  EXPECT_GE(narrow.num_blocks(), 8192 / 16);
}

class BrokenPlacement : public testing::TestWithParam<int> {};

TEST_P(BrokenPlacement, IsRefused) {
  const Topology topology = make_topology(4, 64 * kGiB);
  const ModelSpec model = smollm2();
  Placement placement = plan_placement(topology, model, degrees(2, 2, 1));
  StageSpec& stage = *placement.mutable_replicas(0)->mutable_stages(1);
  switch (GetParam()) {
    case 0: stage.mutable_layers()->set_begin(1); break;
    case 1: stage.mutable_layers()->set_end(29); break;
    case 2: stage.set_has_head(false); break;
    case 3: stage.set_has_embedding(true); break;
    case 4: stage.mutable_shards(0)->set_rank(9); break;
    case 5: stage.mutable_shards(0)->set_rank(1); break;
    case 6: stage.mutable_shards()->RemoveLast(); break;
    case 7: stage.mutable_shards(1)->mutable_ffn()->set_begin(0); break;
    case 8: placement.set_dtype("int3"); break;
    case 9: placement.set_block_size(0); break;
    case 10: placement.set_context(1 << 20); break;
    case 11: placement.mutable_replicas()->Clear(); break;
    case 12: placement.set_num_blocks(-5); break;
    case 13: stage.mutable_shards(1)->set_tp_rank(0); break;
  }
  EXPECT_NE(refusal([&] { validate_placement(topology, model, placement); }), "");
}

INSTANTIATE_TEST_SUITE_P(Ways, BrokenPlacement, testing::Range(0, 14));

// Bytes of a KV cache are counted in 64 bits.
TEST(Placement, BlocksThatNobodyCanCountAreRefused) {
  ModelSpec model = smollm2();
  model.set_num_layers(4096);
  model.set_num_heads(4096);
  model.set_num_kv_heads(4096);
  model.set_head_dim(1024);
  model.set_hidden_size(1);
  const Topology topology = make_topology(1, 64 * kGiB);
  Placement placement;
  PlacementOptions options;
  set_limits(model, options, placement);
  StageSpec& stage = *placement.add_replicas()->add_stages();
  stage.mutable_layers()->set_end(4096);
  stage.set_has_embedding(true);
  stage.set_has_head(true);
  *stage.add_shards() = make_shard(model, 0, 1);
  stage.mutable_shards(0)->set_rank(1);
  placement.set_num_blocks(1);
  EXPECT_NO_THROW(validate_placement(topology, model, placement));
  placement.set_num_blocks(1 << 26);
  const std::string message = refusal([&] { validate_placement(topology, model, placement); });
  EXPECT_NE(message.find("num_blocks is 67108864, needed is 1 to "), std::string::npos) << message;
}

TEST(DeviceMap, RoundTripsAndFillsRanges) {
  const Topology topology = make_topology(4, 64 * kGiB);
  const ModelSpec model = smollm2();
  const Placement placement = plan_placement(topology, model, degrees(2, 2, 1));
  const std::string path = testing::TempDir() + "/placement.json";
  std::ofstream(path) << placement_to_json(placement);
  EXPECT_EQ(read_device_map(path, model).SerializeAsString(), placement.SerializeAsString());

  // Ranks alone: the ranges are an even cut.
  Placement bare = placement;
  for (StageSpec& stage : *bare.mutable_replicas(0)->mutable_stages()) {
    for (ShardSpec& shard : *stage.mutable_shards()) {
      const int32_t rank = shard.rank();
      shard.Clear();
      shard.set_rank(rank);
    }
  }
  std::ofstream(path) << placement_to_json(bare);
  Placement filled = read_device_map(path, model);
  predict_bytes(model, filled);
  EXPECT_EQ(filled.SerializeAsString(), placement.SerializeAsString());

  std::ofstream(path) << R"({"replicas": [{"stagez": []}]})";
  EXPECT_NE(refusal([&] { read_device_map(path, model); }).find("stagez"), std::string::npos);
  std::remove(path.c_str());
  EXPECT_NE(refusal([&] { read_device_map(path, model); }).find("cannot open"), std::string::npos);
}

TEST(Topology, NodesAreSharedOut) {
  Topology topology = make_topology(3, 12 * kGiB);
  topology.mutable_ranks(2)->set_host("other");
  for (RankInfo& rank : *topology.mutable_ranks()) {
    for (int cpu = 0; cpu < 8; ++cpu) rank.mutable_device()->add_cpus(cpu);
    rank.mutable_device()->set_threads(8);
  }
  share_nodes(topology, 0);
  EXPECT_EQ(topology.ranks(0).device().threads(), 4);
  EXPECT_EQ(topology.ranks(2).device().threads(), 8);
  EXPECT_EQ(topology.ranks(0).device().memory_bytes(), 6 * kGiB);
  EXPECT_EQ(topology.ranks(2).device().memory_bytes(), 12 * kGiB);
  share_nodes(topology, 3);
  EXPECT_EQ(topology.ranks(2).device().threads(), 3);
}

// Each GPU to one rank, whatever each rank sees; who gets none shares the cores with its like.
TEST(Topology, GpusAreGivenOutOnce) {
  Topology topology = make_topology(5, 12 * kGiB);
  topology.mutable_ranks(4)->set_host("other");
  const auto add_gpu = [&](int rank, const char* pci_id, int index) {
    DeviceInfo& gpu = *topology.mutable_ranks(rank)->add_gpus();
    gpu.set_kind(DEVICE_KIND_CUDA);
    gpu.set_pci_id(pci_id);
    gpu.set_index(index);
    gpu.set_memory_bytes(80 * kGiB);
  };
  for (RankInfo& rank : *topology.mutable_ranks()) {
    for (int cpu = 0; cpu < 8; ++cpu) rank.mutable_device()->add_cpus(cpu);
    rank.mutable_device()->set_threads(8);
  }
  for (const int rank : {0, 1, 2, 4}) {
    add_gpu(rank, "0000:01:00.0", 0);
    if (rank != 2) add_gpu(rank, "0000:02:00.0", 1);
  }
  share_nodes(topology, 0);
  const int expected[] = {0, 1, -1, -1, 0};  // the index of its GPU; -1: none
  for (int rank = 0; rank < 5; ++rank) {
    const DeviceInfo& device = topology.ranks(rank).device();
    EXPECT_EQ(device.kind(), expected[rank] < 0 ? DEVICE_KIND_CPU : DEVICE_KIND_CUDA) << rank;
    EXPECT_EQ(device.index(), std::max(0, expected[rank])) << rank;
    EXPECT_EQ(device.memory_bytes(), expected[rank] < 0 ? 6 * kGiB : 80 * kGiB) << rank;
    EXPECT_EQ(device.threads(), expected[rank] < 0 ? 4 : 0) << rank;
    EXPECT_EQ(topology.ranks(rank).gpus_size(), 0);
  }
}

// The bytes of a shard are those of its device's layout.
TEST(PredictBytes, FollowTheDevice) {
  Topology topology = make_topology(2, 64 * kGiB);
  topology.mutable_ranks(1)->mutable_device()->set_kind(DEVICE_KIND_CUDA);
  const ModelSpec model = make_model(2, 3, 1, 7, 33, 101);  // no size is a multiple of anything
  Placement placement = plan_placement(make_topology(2, 64 * kGiB), model, degrees(2, 1, 1));
  set_devices(topology, placement);
  predict_bytes(model, placement);
  for (const ShardSpec& shard : placement.replicas(0).stages(0).shards()) {
    const bool gpu = shard.rank() == 2;
    EXPECT_EQ(shard.device(), gpu ? DEVICE_KIND_CUDA : DEVICE_KIND_UNSPECIFIED);
    ShardSpec other = shard;
    other.set_device(gpu ? DEVICE_KIND_CPU : DEVICE_KIND_CUDA);
    const uint64_t there = weight_bytes(model, placement.replicas(0).stages(0), other, placement);
    EXPECT_EQ(there > shard.weight_bytes(), gpu) << "whole panels are larger than whole 16 bytes";
  }
}

TEST(Placement, AReplicaMayHaveFewerBlocks) {
  const ModelSpec model = smollm2();
  const Topology topology = make_topology(2, kGiB);
  PlacementOptions options;
  options.pp = 1;
  options.dp = 2;
  Placement placement = plan_placement(topology, model, options);
  const int32_t planned = placement.num_blocks();
  const uint64_t bytes = placement.replicas(1).stages(0).shards(0).kv_bytes();
  lower_num_blocks(placement, 1, planned / 2);
  EXPECT_EQ(num_blocks_of(placement, 0), planned);
  EXPECT_EQ(num_blocks_of(placement, 1), planned / 2);
  const uint64_t less = placement.replicas(1).stages(0).shards(0).kv_bytes();
  EXPECT_EQ(less, bytes / static_cast<uint64_t>(planned) * static_cast<uint64_t>(planned / 2));
  validate_placement(topology, model, placement);
  predict_bytes(model, placement);
  EXPECT_EQ(placement.replicas(1).stages(0).shards(0).kv_bytes(), less);
  EXPECT_EQ(num_blocks_of(placement, 1), planned / 2);
  // As a new plan of ranks beside it can make it.
  Placement smaller = placement;
  smaller.set_num_blocks(planned / 4);
  predict_bytes(model, smaller);
  EXPECT_EQ(num_blocks_of(smaller, 1), planned / 4);
  EXPECT_LT(smaller.replicas(1).stages(0).shards(0).kv_bytes(), less);
  for (const int32_t wrong : {-1, planned + 1}) {
    placement.mutable_replicas(1)->set_num_blocks(wrong);
    EXPECT_THROW(validate_placement(topology, model, placement), Error) << wrong;
  }
}

TEST(Topology, BoundRanksKeepTheirCores) {
  Topology topology = make_topology(2, kGiB);
  for (int index = 0; index < 2; ++index) {
    DeviceInfo& device = *topology.mutable_ranks(index)->mutable_device();
    for (int cpu = 0; cpu < 4; ++cpu) device.add_cpus(4 * index + cpu);
    device.set_threads(4);
  }
  share_nodes(topology, 0);
  EXPECT_EQ(topology.ranks(0).device().threads(), 4);
  EXPECT_EQ(topology.ranks(1).device().threads(), 4);
}

TEST(Topology, MoreRanksThanCoresStillCompute) {
  Topology topology = make_topology(5, kGiB);
  for (RankInfo& rank : *topology.mutable_ranks()) {
    rank.mutable_device()->add_cpus(0);
    rank.mutable_device()->add_cpus(1);
    rank.mutable_device()->set_threads(2);
  }
  share_nodes(topology, 0);
  for (const RankInfo& rank : topology.ranks()) EXPECT_EQ(rank.device().threads(), 1);
}

}  // namespace
}  // namespace trireme
