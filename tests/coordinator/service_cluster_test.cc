// SPDX-License-Identifier: Apache-2.0
// trireme.v1.Cluster: what it tells of ranks, placement and load.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/coordinator/service_harness.h"

namespace trireme {
namespace {

// The load may leave fewer KV blocks than were planned: the placement is announced again, whoever
// reads it.
TEST(Service, ThePlacementMayBeAnnouncedAgainWhileItIsRead) {
  HarnessOptions options;
  options.serve = false;
  Harness harness(options);
  std::vector<Placement> both(2, harness.placement_);
  for (int i = 0; i < 2000; ++i) both[1].add_spare_ranks(i);
  std::atomic<bool> reading{true};
  std::thread announcer([&] {
    for (size_t turn = 0; reading; ++turn) {
      harness.service_.announce(harness.topology_, both[turn % 2], *harness.engine_);
    }
  });
  int wrong = 0;
  for (int i = 0; i < 200; ++i) {
    Placement read;
    grpc::ClientContext context;
    const bool answered = harness.cluster_->GetPlacement(&context, {}, &read).ok();
    const int spare = read.spare_ranks_size();
    wrong += answered && (spare == 0 || spare == 2000) ? 0 : 1;
  }
  reading = false;
  announcer.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Service, ClusterTellsWhatIsThere) {
  Harness harness;
  Topology topology;
  grpc::ClientContext first;
  ASSERT_TRUE(harness.cluster_->GetTopology(&first, {}, &topology).ok());
  EXPECT_EQ(topology.ranks_size(), 2);
  ASSERT_TRUE(generate(*harness.stub_, ids_request({1, 2}, 3)).status.ok());
  ASSERT_TRUE(harness.idle());
  v1::Load load;
  grpc::ClientContext second;
  ASSERT_TRUE(harness.cluster_->GetLoad(&second, {}, &load).ok());
  EXPECT_EQ(load.prompt_tokens(), 2u);
  EXPECT_EQ(load.output_tokens(), 3u);
  EXPECT_EQ(load.max_queue(), 256);
}

TEST(Service, WatchHealthTellsEveryChange) {
  HarnessOptions options;
  options.serve = false;
  Harness harness(options);
  grpc::ClientContext context;
  const auto reader = harness.cluster_->WatchHealth(&context, {});
  v1::ClusterHealth health;
  ASSERT_TRUE(reader->Read(&health));
  EXPECT_FALSE(health.serving());
  ASSERT_EQ(health.ranks_size(), 2);
  EXPECT_EQ(health.ranks(0).state(), "loading");

  harness.start_serving();
  ASSERT_TRUE(reader->Read(&health));
  EXPECT_TRUE(health.serving());
  EXPECT_EQ(health.ranks(1).state(), "serving");
  EXPECT_EQ(health.ranks(1).host(), "oar2");

  harness.workers_.report(2, ChannelEvent::Kind::kSuspected);
  ASSERT_TRUE(reader->Read(&health));
  EXPECT_FALSE(health.serving());
  EXPECT_EQ(health.ranks(1).state(), "suspected");

  harness.workers_.report(2, ChannelEvent::Kind::kClosed);
  ASSERT_TRUE(reader->Read(&health));
  EXPECT_EQ(health.ranks(1).state(), "dead");
  context.TryCancel();
}

}  // namespace
}  // namespace trireme
