// SPDX-License-Identifier: Apache-2.0
#include "worker/group_tags.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace trireme {
namespace {

// Degrees of the stages of each replica.
Placement placed(const std::vector<std::vector<int>>& replicas) {
  Placement placement;
  for (const auto& degrees : replicas) {
    ReplicaSpec& replica = *placement.add_replicas();
    for (const int degree : degrees) {
      StageSpec& stage = *replica.add_stages();
      for (int index = 0; index < degree; ++index) stage.add_shards();
    }
  }
  return placement;
}

TEST(GroupTags, NoTwoGroupsShareOne) {
  const Placement placement = placed({{1}, {2, 2, 3, 3}, {4, 1, 1, 4}, {3, 3}});
  std::set<int> seen;
  for (int index = 0; index < placement.replicas_size(); ++index) {
    const ReplicaSpec& replica = placement.replicas(index);
    for (int stage = 0; stage < replica.stages_size(); ++stage) {
      EXPECT_TRUE(seen.insert(stage_tag(placement, index, stage)).second);
      for (int edge = 0; stage > 0 && edge < num_edges(replica, stage); ++edge) {
        EXPECT_TRUE(seen.insert(edge_tag(placement, index, stage, edge)).second)
            << "replica " << index << " stage " << stage << " edge " << edge;
      }
    }
  }
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin() + 1, tags_end(placement, placement.replicas_size()));
}

TEST(GroupTags, StagesOfEqualDegreeHaveAnEdgeForEachRank) {
  const Placement placement = placed({{2, 2, 3, 1, 1}});
  const ReplicaSpec& replica = placement.replicas(0);
  EXPECT_EQ(num_edges(replica, 1), 2);
  EXPECT_EQ(num_edges(replica, 2), 1);
  EXPECT_EQ(num_edges(replica, 3), 1);
  EXPECT_EQ(num_edges(replica, 4), 1);
}

}  // namespace
}  // namespace trireme
