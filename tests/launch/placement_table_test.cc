// SPDX-License-Identifier: Apache-2.0
#include "launch/placement_table.h"

#include <gtest/gtest.h>

#include "launch/text_table.h"

namespace trireme {
namespace {

// A stage may have no layer: an HF map gives the embedding a device of its own.
TEST(PlacementTable, ShowsStagesWithoutLayersAndGpus) {
  Topology topology;
  Placement placement;
  ReplicaSpec& replica = *placement.add_replicas();
  for (int rank = 1; rank <= 3; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host("h" + std::to_string(rank));
    info.mutable_device()->set_kind(DEVICE_KIND_CPU);
    info.mutable_device()->set_isa("avx2");
    info.mutable_device()->set_threads(2);
    ShardSpec& shard = *replica.add_stages()->add_shards();
    shard.set_rank(rank);
  }
  RankInfo& gpu = *topology.mutable_ranks(1);
  gpu.mutable_device()->set_kind(DEVICE_KIND_CUDA);
  gpu.mutable_device()->set_name("NVIDIA H100");
  replica.mutable_stages(0)->set_has_embedding(true);
  StageSpec& middle = *replica.mutable_stages(1);
  middle.mutable_layers()->set_begin(0);
  middle.mutable_layers()->set_end(4);
  middle.mutable_shards(0)->mutable_heads()->set_end(8);
  middle.mutable_shards(0)->mutable_ffn()->set_end(64);
  replica.mutable_stages(2)->set_has_head(true);

  EXPECT_EQ(stage_content(replica.stages(0)), "embedding");
  EXPECT_EQ(stage_content(middle), "0-3");
  EXPECT_EQ(stage_content(replica.stages(2)), "head");
  EXPECT_EQ(stage_content({}), "none");
  middle.set_has_embedding(true);
  middle.set_has_head(true);
  EXPECT_EQ(stage_content(middle), "embedding 0-3 head");

  const std::string table = placement_table(topology, {}, placement);
  EXPECT_EQ(table.find("-1"), std::string::npos) << table;
  EXPECT_NE(table.find("h1    avx2 x2      embedding"), std::string::npos) << table;
  EXPECT_NE(table.find("h2    NVIDIA H100  embedding 0-3 head  0-7    0-63"), std::string::npos)
      << table;
}

TEST(TextTable, Numbers) {
  EXPECT_EQ(three_figures(0.03456), "0.0346");
  EXPECT_EQ(three_figures(12.34), "12.3");
  EXPECT_EQ(three_figures(1800), "1800");  // GB/s of NVLink
}

}  // namespace
}  // namespace trireme
