// SPDX-License-Identifier: Apache-2.0
// The rule of health: heartbeats and a clock in, states and lines out.
#include "coordinator/rank_health.h"

#include <gtest/gtest.h>

#include "coordinator/roster.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using State = Verdict::State;

// Ranks 1 and 2 are the stages of replica 0, rank 3 is all of replica 1, rank 4 a spare.
class RankHealth : public testing::Test {
 protected:
  RankHealth() {
    for (int rank = 1; rank <= 4; ++rank) {
      RankRecord facts;
      facts.rank = rank;
      facts.host = rank % 2 == 1 ? "a" : "b";
      facts.replica = rank <= 2 ? 0 : rank == 3 ? 1 : -1;
      facts.stage = rank == 2 ? 1 : rank == 4 ? -1 : 0;
      ranks_.push_back(facts);
      beats_.emplace_back();
    }
  }

  Heartbeat& beat(int rank) { return beats_[rank - 1]; }
  RankRecord& facts(int rank) { return ranks_[rank - 1]; }
  void compute(int rank, Operation operation = OPERATION_ATTENTION) {
    beat(rank).set_current(17);
    beat(rank).set_operation(operation);
    beat(rank).clear_waiting_for();
  }
  void wait(int rank, int peer, Operation operation = OPERATION_RECEIVE) {
    compute(rank, operation);
    beat(rank).add_waiting_for(peer);
  }
  // Heartbeats of all ranks that are not silent, five a second.
  void pass(milliseconds time) {
    for (milliseconds at{0}; at < time; at += milliseconds(200)) {
      now_ += milliseconds(200);
      for (int rank = 1; rank <= 4; ++rank) {
        if (busy_ == rank) beat(rank).set_cpu_us(beat(rank).cpu_us() + 100);
        if (!facts(rank).silent && !facts(rank).dead) note_heartbeat(facts(rank), beat(rank), now_);
      }
    }
  }
  std::vector<State> states() const {
    std::vector<State> states;
    for (const Verdict& verdict : judge(ranks_, now_)) states.push_back(verdict.state);
    return states;
  }
  std::string why(int rank) const { return judge(ranks_, now_)[rank - 1].why; }

  std::vector<RankRecord> ranks_;
  std::vector<Heartbeat> beats_;
  int busy_ = 0;  // whose thread uses CPU time
  Clock::time_point now_{std::chrono::hours(1)};
};

const std::vector<State> kAllWell{State::kServing, State::kServing, State::kServing, State::kSpare};

TEST_F(RankHealth, IdleForADay) {
  pass(std::chrono::hours(1));
  EXPECT_EQ(states(), kAllWell);
}

// One operation of a minute, in which the next stage waits.
TEST_F(RankHealth, ALongPrefillIsNoSuspicion) {
  compute(1);
  wait(2, 1);
  busy_ = 1;
  pass(seconds(60));
  EXPECT_EQ(states(), kAllWell);
}

// The heartbeat of the rank that waits is older than that of the one which has just sent.
TEST_F(RankHealth, TheEndOfALongWaitIsNoStandstill) {
  compute(1);
  wait(2, 1);
  busy_ = 1;
  pass(seconds(60));
  beat(1).Clear();
  beat(1).set_operations(50);
  busy_ = 0;
  pass(milliseconds(200));
  EXPECT_EQ(states(), kAllWell);
  pass(seconds(9));
  EXPECT_EQ(states(), kAllWell);
  pass(seconds(2));  // and it never came
  EXPECT_EQ(states()[1], State::kSuspected);
}

TEST_F(RankHealth, AThreadThatUsesNoTimeIsWedged) {
  compute(1, OPERATION_LOAD);
  pass(seconds(9));
  EXPECT_EQ(states(), kAllWell);
  pass(seconds(2));
  EXPECT_EQ(states()[0], State::kSuspected);
  EXPECT_EQ(states()[2], State::kServing);
  EXPECT_NE(why(1).find("does not move: load for 1"), std::string::npos) << why(1);
  beat(1).set_operations(1);  // it goes on
  pass(milliseconds(200));
  EXPECT_EQ(states(), kAllWell);
}

// The one who waits for a wedged or a silent rank is not to blame.
TEST_F(RankHealth, WhoWaitsIsAsGoodAsWhomItWaitsFor) {
  compute(1);
  wait(2, 1);
  pass(seconds(12));
  EXPECT_EQ(states()[0], State::kSuspected);
  EXPECT_EQ(states()[1], State::kServing);
  facts(1).silent = true;
  facts(1).reason = "no heartbeat for 2.1 s";
  pass(seconds(12));
  EXPECT_EQ(states()[0], State::kSuspected);
  EXPECT_EQ(why(1), "silent: no heartbeat for 12.0 s");
  EXPECT_EQ(states()[1], State::kServing);
}

TEST_F(RankHealth, AStandstillIsSeen) {
  wait(1, 2);
  wait(2, 1);
  busy_ = 1;  // to poll for a message is no progress
  pass(seconds(9));
  EXPECT_EQ(states(), kAllWell);
  pass(seconds(2));
  EXPECT_EQ(states()[0], State::kSuspected);
  EXPECT_EQ(states()[1], State::kSuspected);
  EXPECT_NE(why(2).find("waits for rank 1"), std::string::npos) << why(2);
  // It waits for one that has nothing to do: a message was lost.
  beat(1).Clear();
  beat(1).set_operations(9);
  pass(seconds(12));
  EXPECT_EQ(states()[0], State::kServing);
  EXPECT_EQ(states()[1], State::kSuspected);
  // Parts of a long message come.
  beat(2).set_operations(1);
  pass(milliseconds(200));
  EXPECT_EQ(states(), kAllWell);
}

TEST_F(RankHealth, WhatARankClaimsIsChecked) {
  wait(1, 99);
  wait(2, -5);
  beat(2).set_operation(static_cast<Operation>(77));
  beat(2).set_operation_us(UINT64_MAX);
  beat(2).set_layer(INT32_MIN);
  for (int i = 0; i < 1000; ++i) beat(2).add_waiting_for(i);
  pass(seconds(12));
  EXPECT_EQ(states()[0], State::kSuspected);
  EXPECT_EQ(operation_of(beat(2)), "operation 77");
  EXPECT_LT(doing(facts(2), now_).size(), 200u);
  EXPECT_FALSE(operation_of(beat(1)).empty());
}

TEST_F(RankHealth, SaysWhatARankWasIn) {
  EXPECT_EQ(doing(facts(1), now_), "not heard of yet");
  wait(1, 2, OPERATION_ALL_REDUCE);
  beat(1).set_layer(8);
  beat(1).set_operation_us(310000);
  pass(milliseconds(200));
  EXPECT_EQ(doing(facts(1), now_ + milliseconds(1200)),
            "in micro-batch 17, layer 7 all-reduce, waiting for rank 2, for 0.31 s when last heard "
            "1.2 s ago");
  EXPECT_EQ(doing(facts(3), now_), "idle, for 0.00 s when last heard 0.00 s ago");
}

TEST_F(RankHealth, WhatFollowsFromAFailure) {
  EXPECT_TRUE(follows_from(facts(1), seconds(60), facts(2)));   // of its replica
  EXPECT_FALSE(follows_from(facts(1), seconds(60), facts(3)));  // of another
  EXPECT_TRUE(follows_from(facts(1), seconds(2), facts(3)));    // the launcher ends the job
  EXPECT_FALSE(follows_from(facts(4), seconds(60), facts(1)));
}

// ---- the roster: the same from events of the channel ----

class RosterTest : public testing::Test {
 protected:
  RosterTest() {
    for (int rank = 1; rank <= 3; ++rank) {
      RankInfo& info = *topology_.add_ranks();
      info.set_rank(rank);
      info.set_host("h" + std::to_string(rank));
    }
    ReplicaSpec& replica = *placement_.add_replicas();
    for (int rank = 1; rank <= 2; ++rank) replica.add_stages()->add_shards()->set_rank(rank);
    placement_.add_replicas()->add_stages()->add_shards()->set_rank(3);
    roster_ = std::make_unique<Roster>(topology_, placement_, false);
  }

  void hear(int rank, ChannelEvent::Kind kind, const std::string& reason = "") {
    roster_->hear({rank, kind, {}, reason}, now_);
  }
  void hear_beat(int rank, const Heartbeat& beat) {
    ChannelEvent event{rank, ChannelEvent::Kind::kMessage, {}, ""};
    *event.message.mutable_heartbeat() = beat;
    roster_->hear(event, now_);
  }

  Topology topology_;
  Placement placement_;
  std::unique_ptr<Roster> roster_;
  Clock::time_point now_{std::chrono::hours(1)};
};

TEST_F(RosterTest, TellsWhatARankIsIn) {
  Heartbeat beat;
  beat.set_micro_batch(16);
  beat.set_current(17);
  beat.set_operation(OPERATION_RECEIVE);
  beat.set_operation_us(400000);
  beat.add_waiting_for(1);
  hear_beat(2, beat);
  const v1::RankHealth rank = roster_->health(now_ + milliseconds(100)).ranks(1);
  EXPECT_EQ(rank.rank(), 2);
  EXPECT_EQ(rank.host(), "h2");
  EXPECT_EQ(rank.replica(), 0);
  EXPECT_EQ(rank.stage(), 1);
  EXPECT_EQ(rank.state(), "serving");
  EXPECT_EQ(rank.micro_batch(), 16u);
  EXPECT_EQ(rank.current_micro_batch(), 17u);
  EXPECT_EQ(rank.operation(), "receive activations");
  EXPECT_EQ(rank.waiting_for(0), 1);
  EXPECT_EQ(rank.since_ms(), 500);
  EXPECT_EQ(rank.heartbeat_age_ms(), 100);
  EXPECT_TRUE(roster_->busy());
}

TEST_F(RosterTest, ServesAsLongAsAReplicaIsWhole) {
  EXPECT_EQ(roster_->health(now_).state(), "serving");
  EXPECT_FALSE(roster_->states_changed(now_));
  hear(2, ChannelEvent::Kind::kSuspected, "no heartbeat for 2.0 s");
  EXPECT_TRUE(roster_->states_changed(now_));
  EXPECT_FALSE(roster_->states_changed(now_));
  EXPECT_EQ(roster_->health(now_).state(), "degraded");
  EXPECT_TRUE(roster_->health(now_).serving());
  hear(3, ChannelEvent::Kind::kClosed, "reset");
  EXPECT_FALSE(roster_->health(now_).serving());
  hear(2, ChannelEvent::Kind::kRecovered);
  EXPECT_TRUE(roster_->health(now_).serving());
  roster_->abandon(0);
  EXPECT_EQ(roster_->health(now_).state(), "not serving");
  EXPECT_EQ(roster_->health(now_).ranks(1).state(), "abandoned");
  hear(77, ChannelEvent::Kind::kClosed);  // harms nobody
}

TEST_F(RosterTest, OfTheRanksThatOneClaimsToWaitForAFewAreKept) {
  ChannelEvent event{2, ChannelEvent::Kind::kMessage, {}, ""};
  for (int i = 0; i < 1'000'000; ++i) event.message.mutable_heartbeat()->add_waiting_for(i);
  roster_->hear(event, now_);
  const v1::RankHealth rank = roster_->health(now_).ranks(1);
  EXPECT_EQ(rank.waiting_for_size(), 1024);
  EXPECT_EQ(rank.waiting_for(1), 1);
}

TEST_F(RosterTest, OneFailureIsTheFirst) {
  hear(2, ChannelEvent::Kind::kClosed, "reset");
  EXPECT_TRUE(roster_->note_failure(2, "rank 2 (host h2, stage 1) is lost: reset", now_));
  const std::string line = roster_->first_failure();
  EXPECT_EQ(line,
            "first failure: rank 2 (host h2, stage 1) is lost: reset; it was not heard of yet");
  now_ += seconds(60);
  EXPECT_FALSE(roster_->note_failure(1, "rank 1", now_));
  EXPECT_EQ(roster_->first_failure(), line);
  EXPECT_TRUE(roster_->note_failure(3, "rank 3", now_));  // another replica's, much later
  EXPECT_NE(roster_->first_failure(), line);
  EXPECT_EQ(roster_->health(now_).first_failure(), roster_->first_failure());
}

}  // namespace
}  // namespace trireme
