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

// What a newer client means by it is not to be ignored: a Drain of one rank would drain all.
template <class Request>
Request of_a_later_version() {
  Request request;
  request.GetReflection()->MutableUnknownFields(&request)->AddVarint(999, 1);
  return request;
}

TEST(Service, RefusesFieldsOfALaterVersion) {
  HarnessOptions options;
  options.token = "sesame";
  Harness harness(options);
  const auto refused = [](const char* what, const auto& call) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer sesame");
    const grpc::Status status = call(&context);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << what;
    EXPECT_EQ(status.error_message().find("field number 999"), 0u) << status.error_message();
  };
  refused("Abort", [&](auto* context) {
    v1::AbortReply reply;
    return harness.stub_->Abort(context, of_a_later_version<v1::AbortRequest>(), &reply);
  });
  refused("GetTopology", [&](auto* context) {
    Topology reply;
    const auto request = of_a_later_version<v1::GetTopologyRequest>();
    return harness.cluster_->GetTopology(context, request, &reply);
  });
  refused("GetPlacement", [&](auto* context) {
    Placement reply;
    const auto request = of_a_later_version<v1::GetPlacementRequest>();
    return harness.cluster_->GetPlacement(context, request, &reply);
  });
  refused("GetLoad", [&](auto* context) {
    v1::Load reply;
    return harness.cluster_->GetLoad(context, of_a_later_version<v1::GetLoadRequest>(), &reply);
  });
  refused("Drain", [&](auto* context) {
    v1::DrainReply reply;
    return harness.cluster_->Drain(context, of_a_later_version<v1::DrainRequest>(), &reply);
  });
  refused("WatchHealth", [&](auto* context) {
    const auto request = of_a_later_version<v1::WatchHealthRequest>();
    const auto reader = harness.cluster_->WatchHealth(context, request);
    v1::ClusterHealth health;
    EXPECT_FALSE(reader->Read(&health));
    return reader->Finish();
  });
  EXPECT_FALSE(harness.drained);
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
