// SPDX-License-Identifier: Apache-2.0
#include "launch/loading.h"

#include <gtest/gtest.h>

#include <thread>

namespace trireme {
namespace {

using std::chrono::milliseconds;

// Two stages of one rank each, on hosts h1 and h2.
struct Job {
  Job() {
    ReplicaSpec& replica = *placement.add_replicas();
    for (const int rank : {1, 2}) {
      RankInfo& info = *topology.add_ranks();
      info.set_rank(rank);
      info.set_host("h" + std::to_string(rank));
      replica.add_stages()->add_shards()->set_rank(rank);
    }
  }
  Topology topology;
  Placement placement;
};

ChannelEvent event_of(int rank) {
  ChannelEvent event;
  event.rank = rank;
  return event;
}

std::string refusal(Loading& loading) {
  try {
    loading.tick();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kDeadlineExceeded);
    return error.what();
  }
  return "";
}

TEST(Loading, ARankThatDoesNotBeginIsNamed) {
  const Job job;
  Roster roster(job.topology, job.placement, false);
  Loading loading(job.topology, job.placement, false, roster, milliseconds(20));
  EXPECT_EQ(refusal(loading), "");
  ChannelEvent begun = event_of(1);
  begun.message.mutable_heartbeat()->set_operation(OPERATION_LOAD);
  loading.handle(begun);
  ChannelEvent idle = event_of(2);
  idle.message.mutable_heartbeat()->set_operation(OPERATION_IDLE);
  loading.handle(idle);
  std::this_thread::sleep_for(milliseconds(30));
  const std::string message = refusal(loading);
  EXPECT_NE(message.find("rank 2 (host h2"), std::string::npos) << message;
  EXPECT_EQ(message.find("rank 1"), std::string::npos) << message;
  // It was only late.
  ChannelEvent progress = event_of(2);
  progress.message.mutable_progress()->set_bytes_total(100);
  loading.handle(progress);
  EXPECT_EQ(refusal(loading), "");
}

// A rank's words go to the log and into the status file too, not only into an Error.
TEST(Loading, WhatAFailedRankSaysCommandsNoTerminal) {
  const Job job;
  Roster roster(job.topology, job.placement, false);
  Loading loading(job.topology, job.placement, false, roster, milliseconds(60000));
  ChannelEvent failed = event_of(2);
  failed.message.mutable_failed()->set_code(static_cast<int>(Code::kResourceExhausted));
  failed.message.mutable_failed()->set_message("no memory\n\x1b[2J" + std::string(5000, 'x'));
  EXPECT_THROW(loading.handle(failed), Error);
  const std::string line = roster.first_failure();
  EXPECT_NE(line.find("rank 2 (host h2, stage 1) failed: no memory ?[2Jxx"), std::string::npos)
      << line;
  EXPECT_LT(line.size(), 1500u);
}

}  // namespace
}  // namespace trireme
