// SPDX-License-Identifier: Apache-2.0
// What the engine makes of what the ranks say, and of their loss.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "coordinator/engine.h"
#include "tests/coordinator/engine_fixture.h"

namespace trireme {
namespace {

TEST_F(EngineTest, ALostRankEndsItsReplicaAndTheOtherGoesOn) {
  auto here = submit("here");
  auto there = submit("there");
  turn();
  answer_all(7);
  channel_.take_sent();
  channel_.report(2, ChannelEvent::Kind::kClosed, "connection\nreset");
  turn();
  EXPECT_EQ(here->end, "UNAVAILABLE");
  EXPECT_NE(here->error.find("rank 2 (host b, stage 1) is lost: connection reset"),
            std::string::npos)
      << here->error;
  EXPECT_EQ(abandoned(), std::vector<int>{1});
  EXPECT_EQ(there->end, "");
  EXPECT_EQ(engine_->lost_reason(), "");
  EXPECT_TRUE(engine_->health().serving());
  EXPECT_EQ(state(1), "abandoned");
  EXPECT_EQ(state(2), "dead");
  EXPECT_EQ(state(3), "serving");
  EXPECT_EQ(state(5), "spare");

  channel_.report(1, ChannelEvent::Kind::kClosed, "follows");
  channel_.report(4, ChannelEvent::Kind::kClosed, "power");
  turn();
  EXPECT_EQ(there->end, "UNAVAILABLE");
  EXPECT_NE(engine_->lost_reason().find("rank 4 (host b, stage 1)"), std::string::npos);
  EXPECT_FALSE(engine_->health().serving());
  expect_error(Code::kUnavailable, "rank 4", [&] { submit("more"); });
}

TEST_F(EngineTest, TheFirstOfManyReportsIsTheCause) {
  make(1);
  auto sink = submit("r");
  turn();
  answer_all(7);
  channel_.report_failed(1, Code::kResourceExhausted, "out of memory: 3 µs\x1b[2J\xff");
  channel_.report(1, ChannelEvent::Kind::kClosed, "its connection ended");
  channel_.report(2, ChannelEvent::Kind::kClosed, "its connection ended");
  turn();
  // What it says is made fit for a line, and no more of it is lost than must be.
  const std::string said = "rank 1 (host a, stage 0) failed: out of memory: 3 µs?[2J?";
  EXPECT_NE(sink->error.find(said), std::string::npos) << sink->error;
  EXPECT_EQ(engine_->lost_reason(), said);
}

TEST_F(EngineTest, ADeathIsTheCauseOfAPeersReportInTheSameTurn) {
  for (const Code code : {Code::kUnavailable, Code::kCancelled}) {
    make(1);
    auto sink = submit("r");
    turn();
    answer_all(7);
    channel_.report_failed(2, code, "a peer is lost");
    channel_.report(2, ChannelEvent::Kind::kClosed, "its connection ended");
    channel_.report(1, ChannelEvent::Kind::kClosed, "killed");
    turn();
    EXPECT_EQ(engine_->lost_reason(), "rank 1 (host a, stage 0) is lost: killed");
  }
}

TEST_F(EngineTest, AReportOfALostPeerWaitsForThatPeersEnd) {
  make(1);
  auto sink = submit("r");
  turn();
  answer_all(7);
  channel_.report_failed(2, Code::kUnavailable, "a peer is lost");
  turn();
  EXPECT_EQ(engine_->lost_reason(), "");
  now_ += std::chrono::milliseconds(50);
  channel_.report(1, ChannelEvent::Kind::kClosed, "killed");
  turn();
  EXPECT_EQ(engine_->lost_reason(), "rank 1 (host a, stage 0) is lost: killed");
  EXPECT_EQ(sink->end, "UNAVAILABLE");
  EXPECT_EQ(engine_->health(now_).first_failure().find("first failure: rank 1 "), 0u);

  // For a while; alone, it is all that is known.
  make(1);
  channel_.report_failed(2, Code::kUnavailable, "a peer is lost");
  turn();
  now_ += std::chrono::milliseconds(500);
  turn();
  EXPECT_EQ(engine_->lost_reason(), "rank 2 (host b, stage 1) failed: a peer is lost");

  // But for whom it says that it has lost.
  make(1);
  ChannelEvent event{2, ChannelEvent::Kind::kMessage, {}, ""};
  event.message.mutable_failed()->set_code(static_cast<int>(Code::kUnavailable));
  event.message.mutable_failed()->set_message("cannot receive");
  for (const int rank : {99, 1}) event.message.mutable_failed()->add_waiting_for(rank);
  channel_.report(event);
  turn();
  now_ += std::chrono::milliseconds(500);
  turn();
  EXPECT_EQ(engine_->lost_reason(),
            "rank 1 (host a, stage 0) cannot be reached: rank 2 (host b, stage 1) failed: cannot "
            "receive");
}

TEST_F(EngineTest, HealthIsToldAgainWhileSomethingIsInWork) {
  const auto calls = std::make_shared<int>(0);  // the engine outlives this function
  engine_->set_health_listener([calls] { ++*calls; });
  const auto beat = [&](uint64_t current) {
    now_ += std::chrono::milliseconds(200);
    ChannelEvent event{1, ChannelEvent::Kind::kMessage, {}, ""};
    event.message.mutable_heartbeat()->set_current(current);
    channel_.report(event);
    turn();
  };
  for (int i = 0; i < 50; ++i) beat(0);
  EXPECT_EQ(*calls, 0);
  for (int i = 0; i < 50; ++i) beat(3);
  EXPECT_GE(*calls, 15);  // twice in a second, of ten
  EXPECT_LE(*calls, 21);
  for (int i = 0; i < 5; ++i) beat(0);  // at rest, which is told once
  const int calls_at_rest = *calls;
  for (int i = 0; i < 50; ++i) beat(0);
  EXPECT_EQ(*calls, calls_at_rest);
  EXPECT_LE(calls_at_rest, 24);
}

TEST_F(EngineTest, ARequestWithoutATokenMovesOnce) {
  auto moved = submit("moved");
  turn();
  EXPECT_EQ(channel_.take_sent().front().rank, 1);
  channel_.report(1, ChannelEvent::Kind::kClosed, "killed");
  turn();
  EXPECT_EQ(moved->end, "");
  EXPECT_EQ(answer_all(7), (std::vector<int>{3, 4}));
  EXPECT_EQ(moved->tokens.size(), 1u);

  make(2);
  auto poison = submit("poison");
  turn();
  channel_.report(1, ChannelEvent::Kind::kClosed, "killed");
  turn();
  channel_.report(3, ChannelEvent::Kind::kClosed, "killed too");
  turn();
  EXPECT_EQ(poison->end, "UNAVAILABLE");
  EXPECT_NE(poison->error.find("rank 3 (host a, stage 0)"), std::string::npos) << poison->error;
}

TEST_F(EngineTest, WhatHasNoReplicaYetOutlivesALossUnlessItIsTheLast) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 16; ++i) {
    sinks.push_back(submit("r" + std::to_string(i), 3, 2));
    if (i == 7) turn();
  }
  turn();
  EXPECT_EQ(engine_->num_queued(), 8);
  channel_.report(1, ChannelEvent::Kind::kClosed, "killed");
  turn();
  EXPECT_EQ(engine_->num_queued(), 12);  // what ran there, too
  for (const auto& sink : sinks) EXPECT_EQ(sink->end, "");
  answer_all(7);
  answer_all(7);  // those that run end, and the moved ones begin: they are the oldest
  EXPECT_EQ(engine_->num_queued(), 8);
  channel_.report(3, ChannelEvent::Kind::kClosed, "killed too");
  turn();
  EXPECT_EQ(engine_->num_queued(), 0);
  int num_lost = 0;
  for (const auto& sink : sinks) num_lost += sink->end == "UNAVAILABLE" ? 1 : 0;
  EXPECT_EQ(num_lost, 12);
  EXPECT_NE(sinks[15]->error.find("rank 3 (host a, stage 0)"), std::string::npos);
  EXPECT_TRUE(engine_->wait_idle(std::chrono::milliseconds(0)));
}

TEST_F(EngineTest, ASuspectedRankOnlyChangesHealth) {
  make(1);
  const auto calls = std::make_shared<int>(0);  // the engine outlives this function
  engine_->set_health_listener([calls] { ++*calls; });
  auto sink = submit("r");
  turn();
  channel_.report(1, ChannelEvent::Kind::kSuspected, "no heartbeat for 2 s");
  turn();
  EXPECT_FALSE(engine_->health().serving());
  EXPECT_EQ(state(1), "suspected");
  EXPECT_EQ(*calls, 1);
  answer_all(7);
  EXPECT_EQ(sink->tokens.size(), 1u);
  channel_.report(1, ChannelEvent::Kind::kRecovered, "");
  turn();
  EXPECT_TRUE(engine_->health().serving());
  EXPECT_EQ(state(1), "serving");
  EXPECT_EQ(*calls, 2);
}

TEST_F(EngineTest, HeartbeatsTellProgress) {
  ChannelEvent event{3, ChannelEvent::Kind::kMessage, {}, ""};
  event.message.mutable_heartbeat()->set_micro_batch(17);
  channel_.report(event);
  turn();
  EXPECT_EQ(engine_->health().ranks(2).micro_batch(), 17u);
}

TEST_F(EngineTest, AMessageThatHasNoPlaceEndsItsReplicaNamingTheRank) {
  struct Case {
    std::string name;
    int rank;
    std::function<void(FromWorker&)> spoil;  // gets the right message
  };
  const std::vector<Case> cases = {
      {"unknown micro-batch", 2, [](auto& m) { m.mutable_result()->set_id(99); }},
      {"token out of range", 2,
       [](auto& m) { m.mutable_result()->mutable_tokens(0)->set_token(100); }},
      {"not the reporter", 1, [](auto&) {}},
      {"a greeting", 2, [](auto& m) { m.mutable_hello(); }},
      {"nothing", 1, [](auto& m) { m.Clear(); }},
  };
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.name);
    make(1);
    auto sink = submit("r");
    turn();
    answer_all(7);
    ChannelEvent event{bad.rank, ChannelEvent::Kind::kMessage, {}, ""};
    *event.message.mutable_result() = answer(channel_.take_sent().front().message.micro_batch(), 7);
    bad.spoil(event.message);
    channel_.report(event);
    turn();
    EXPECT_EQ(sink->end, "INTERNAL");
    const std::string name =
        bad.rank == 1 ? "rank 1 (host a, stage 0)" : "rank 2 (host b, stage 1)";
    EXPECT_NE(sink->error.find(name), std::string::npos) << sink->error;
    EXPECT_EQ(abandoned(), (std::vector<int>{1, 2}));
  }
  // A result that nobody waits for, one of a spare, an event of a rank that does not exist.
  make(2);
  channel_.report_result(2, {});
  channel_.report_result(5, {});
  channel_.report(77, ChannelEvent::Kind::kClosed, "who?");
  turn();
  EXPECT_TRUE(engine_->health().serving());
  EXPECT_EQ(state(2), "abandoned");
}

}  // namespace
}  // namespace trireme
