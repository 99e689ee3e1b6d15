// SPDX-License-Identifier: Apache-2.0
// The engine's answers to its clients, one by one. Mixtures of them: tests/simulation.
#include "coordinator/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/coordinator/engine_fixture.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;

TEST_F(EngineTest, SendsTheSameBatchToEveryRankAndTokensToTheSink) {
  Request asked = request("r", 3, 2);
  asked.sampling.logprobs = 2;
  auto sink = std::static_pointer_cast<RecordingSink>(asked.sink);
  engine_->submit(std::move(asked));
  turn();
  EXPECT_EQ(engine_->load().running(), 1);
  EXPECT_FALSE(engine_->wait_idle(milliseconds(0)));
  EXPECT_EQ(answer_all(7), (std::vector<int>{1, 2}));
  EXPECT_EQ(sink->tokens, std::vector<int32_t>{7});
  ASSERT_EQ(sink->logprobs.size(), 2u);
  EXPECT_EQ(sink->logprobs[1].id, 1);
  EXPECT_EQ(sink->end, "");
  answer_all(8);
  EXPECT_EQ(sink->tokens, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(sink->end, "length");
  const v1::Load load = engine_->load();
  EXPECT_EQ(load.running() + load.waiting(), 0);
  EXPECT_EQ(load.blocks_free(), 32);
  EXPECT_EQ(load.blocks_total(), 32);
  EXPECT_EQ(load.prompt_tokens(), 3u);
  EXPECT_EQ(load.output_tokens(), 2u);
  EXPECT_TRUE(engine_->wait_idle(milliseconds(0)));
}

TEST_F(EngineTest, AStopIdGoesToTheSinkAndEndsTheRequest) {
  Request asked = request("r");
  asked.stop_ids = {9, 50};
  auto sink = std::static_pointer_cast<RecordingSink>(asked.sink);
  engine_->submit(std::move(asked));
  turn();
  answer_all(7);
  answer_all(50);
  EXPECT_EQ(sink->tokens, (std::vector<int32_t>{7, 50}));
  EXPECT_EQ(sink->end, "stop 50");
}

TEST_F(EngineTest, ASinkThatHasEnoughEndsTheRequest) {
  auto sink = submit("r");
  sink->enough = 2;
  turn();
  for (int i = 0; i < 4; ++i) answer_all(7);
  EXPECT_EQ(sink->tokens.size(), 2u);
  EXPECT_EQ(sink->end, "stop");
}

TEST_F(EngineTest, ADeadlineEndsWithItsErrorWhereverTheRequestIs) {
  make(1);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 6; ++i) {  // four run, two wait
    Request asked = request("r" + std::to_string(i), 3, 20);
    asked.deadline = now_ + milliseconds(50);
    sinks.push_back(std::static_pointer_cast<RecordingSink>(asked.sink));
    engine_->submit(std::move(asked));
  }
  turn();
  answer_all(7);
  now_ += milliseconds(49);
  answer_all(7);
  EXPECT_EQ(sinks[0]->end, "");
  now_ += milliseconds(1);
  turn();
  for (const auto& sink : sinks) EXPECT_EQ(sink->end, "DEADLINE_EXCEEDED");
  EXPECT_NE(sinks[0]->error.find("of at most 20 tokens"), std::string::npos) << sinks[0]->error;
  answer_all(7);  // what was in flight frees its blocks
  EXPECT_EQ(engine_->load().blocks_free(), 16);
}

TEST_F(EngineTest, CancelEndsInOneTurnWithoutACall) {
  auto sink = submit("r");
  engine_->cancel("r");  // still in the inbox
  turn();
  EXPECT_TRUE(channel_.take_sent().empty());
  submit("r");  // its id is free again
  turn();
  engine_->cancel("r");
  engine_->cancel("unknown");
  turn();
  EXPECT_EQ(engine_->load().running(), 0);
  answer_all(7);
  EXPECT_EQ(engine_->load().blocks_free(), 32);
  EXPECT_TRUE(sink->tokens.empty());
  EXPECT_EQ(sink->end, "");
}

TEST_F(EngineTest, RefusesWhatCannotRun) {
  const auto refused = [&](Request bad, const std::string& part) {
    expect_error(Code::kInvalidArgument, part, [&] { engine_->submit(std::move(bad)); });
  };
  refused(request("r", 0), "no token");
  refused(request("r", 3, 0), "max_tokens is 0");
  refused(request("r", 3, 38), "40 tokens");
  refused(request("r", 3, INT32_MAX), "40 tokens");
  Request bad = request("r");
  bad.prompt[1] = 100;
  refused(bad, "prompt token 100");
  bad.prompt[1] = -1;
  refused(bad, "prompt token -1");
  submit("r");
  expect_error(Code::kAlreadyExists, "its id r", [&] { submit("r"); });
  EXPECT_TRUE(engine_->tick(now_));
}

// After the load memory may hold fewer blocks than planned: of each of the two replicas eight.
TEST_F(EngineTest, AReplicaWithFewerBlocksServesWithThose) {
  const int32_t total = engine_->load().blocks_total();
  engine_->set_num_blocks(1, 8);
  EXPECT_EQ(engine_->load().blocks_total(), total - 16 + 8);
  EXPECT_EQ(engine_->load().blocks_free(), total - 16 + 8);
  // What one replica could not hold is no longer taken: which one will serve it nobody knows.
  engine_->set_num_blocks(0, 8);
  EXPECT_EQ(engine_->load().blocks_total(), 16);
  expect_error(Code::kInvalidArgument, "33 tokens", [&] { engine_->submit(request("r", 3, 31)); });
  engine_->submit(request("r", 3, 30));
}

TEST_F(EngineTest, AFullQueueRefusesAtOnce) {
  for (int i = 0; i < 8; ++i) submit("r" + std::to_string(i));
  expect_error(Code::kResourceExhausted, "--max_queue allows 8", [&] { submit("more"); });
  turn();  // eight run, four in each replica
  EXPECT_EQ(engine_->load().running(), 8);
  for (int i = 8; i < 16; ++i) submit("r" + std::to_string(i));
  expect_error(Code::kResourceExhausted, "8 are queued", [&] { submit("more"); });
}

// ---- several answers to one request ----

TEST_F(EngineTest, AnswersEndOneByOneAndTheIdIsFreeAfterTheLast) {
  make(1);
  auto [sinks, answers] = this->answers("r", 3);
  sinks[1]->enough = 2;
  engine_->submit(std::move(answers));
  turn();
  EXPECT_EQ(engine_->load().running(), 3);
  for (int i = 0; i < 4; ++i) answer_all(7);
  EXPECT_EQ(sinks[1]->end, "stop");
  EXPECT_EQ(sinks[0]->end, "");
  expect_error(Code::kAlreadyExists, "its id r", [&] { submit("r"); });
  EXPECT_FALSE(engine_->wait_idle(milliseconds(0)));
  for (int i = 0; i < 8; ++i) answer_all(7);
  for (const int index : {0, 2}) {
    EXPECT_EQ(sinks[index]->end, "length");
    EXPECT_EQ(sinks[index]->tokens.size(), 10u);
  }
  EXPECT_TRUE(engine_->wait_idle(milliseconds(0)));
  EXPECT_EQ(engine_->load().blocks_free(), 16);
  submit("r");
}

TEST_F(EngineTest, TheQueueTakesAllAnswersOrNone) {
  for (int i = 0; i < 6; ++i) submit("r" + std::to_string(i));  // eight may wait
  expect_error(Code::kResourceExhausted, "6 are queued, --max_queue allows 8 and it asks for 3",
               [&] { engine_->submit(answers("more", 3).second); });
  EXPECT_EQ(engine_->load().waiting(), 0);  // not published yet
  turn();
  EXPECT_EQ(engine_->load().running() + engine_->load().waiting(), 6);
  engine_->submit(answers("some", 8).second);
  turn();
  EXPECT_EQ(engine_->load().running() + engine_->load().waiting(), 14);
}

TEST_F(EngineTest, CancelEndsAllAnswers) {
  auto [sinks, answers] = this->answers("r", 6);  // four run in each replica
  engine_->submit(std::move(answers));
  turn();
  answer_all(7);
  engine_->cancel("r");
  turn();
  answer_all(7);
  EXPECT_EQ(engine_->load().running() + engine_->load().waiting(), 0);
  EXPECT_EQ(engine_->load().blocks_free(), 32);
  for (const auto& sink : sinks) EXPECT_EQ(sink->end, "");
}

TEST_F(EngineTest, AnErrorOfOneAnswerIsTheErrorOfAll) {
  auto [sinks, answers] = this->answers("r", 4);  // two in each replica
  engine_->submit(std::move(answers));
  turn();
  answer_all(7);
  channel_.report(1, ChannelEvent::Kind::kClosed, "killed");
  turn();
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->end, "UNAVAILABLE");
    EXPECT_NE(sink->error.find("rank 1 (host a, stage 0)"), std::string::npos) << sink->error;
  }
  answer_all(7);
  EXPECT_TRUE(engine_->wait_idle(milliseconds(0)));
  EXPECT_EQ(engine_->load().blocks_free(), 16);

  auto [late, expiring] = this->answers("late", 3);
  for (Request& answer : expiring) answer.deadline = now_ + milliseconds(5);
  engine_->submit(std::move(expiring));
  turn();
  now_ += milliseconds(6);
  turn();
  for (const auto& sink : late) EXPECT_EQ(sink->end, "DEADLINE_EXCEEDED");

  auto [last, lost] = this->answers("lost", 3);  // in the inbox when the last replica goes
  channel_.report(3, ChannelEvent::Kind::kClosed, "killed");
  engine_->submit(std::move(lost));
  turn();
  for (const auto& sink : last) EXPECT_EQ(sink->end, "UNAVAILABLE");
  EXPECT_TRUE(engine_->wait_idle(milliseconds(0)));
}

TEST_F(EngineTest, TheReplicaWithLessToDoIsChosen) {
  submit("big", 20, 20);
  submit("small", 2, 2);
  submit("next", 2, 2);  // beside "small", although both have one request
  turn();
  std::vector<int> sequences(5, 0);
  for (const auto& [rank, message] : channel_.take_sent()) {
    sequences[rank] += message.micro_batch().chunks_size();
  }
  EXPECT_EQ(sequences, (std::vector<int>{0, 1, 1, 2, 2}));
}

// The second replica never answers: it keeps what it has, and all others are served by the first.
TEST_F(EngineTest, NobodyWaitsBehindASlowReplica) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 16; ++i) {
    sinks.push_back(submit("r" + std::to_string(i), 3, 2));
    if (i == 7) turn();  // four run in each
  }
  turn();
  EXPECT_EQ(engine_->num_queued(), 8);
  engine_->cancel("r9");
  for (int step = 0; step < 20; ++step) {
    for (const auto& [rank, message] : channel_.take_sent()) {
      if (rank == 2) channel_.report_result(rank, answer(message.micro_batch(), 7));
    }
    turn();
  }
  EXPECT_EQ(engine_->num_queued(), 0);
  int num_ended = 0;
  for (const auto& sink : sinks) num_ended += sink->end == "length" ? 1 : 0;
  EXPECT_EQ(num_ended, 16 - 4 - 1);
  EXPECT_EQ(sinks[9]->end, "");
  EXPECT_EQ(engine_->load().running(), 4);
}

TEST_F(EngineTest, TheFasterReplicaIsChosen) {
  submit("slow");
  submit("fast");
  turn();
  std::vector<FakeChannel::Sent> sent = channel_.take_sent();
  now_ += milliseconds(10);
  channel_.report_result(4, answer(sent.back().message.micro_batch(), 7));
  turn();
  now_ += milliseconds(20);
  channel_.report_result(2, answer(sent.front().message.micro_batch(), 7));
  turn();
  channel_.take_sent();
  submit("next", 1, 2);  // both have as many tokens to do
  turn();
  for (const auto& [rank, message] : channel_.take_sent()) EXPECT_GE(rank, 3);
}

TEST_F(EngineTest, DrainTakesNoMoreAndLetsTheRestEnd) {
  auto sink = submit("r", 3, 1);
  turn();
  const auto calls = std::make_shared<int>(0);  // the engine outlives this function
  engine_->set_health_listener([calls] { ++*calls; });
  engine_->drain("the server ends at noon");
  expect_error(Code::kUnavailable, "ends at noon", [&] { submit("more"); });
  turn();
  EXPECT_EQ(*calls, 1);
  EXPECT_FALSE(engine_->health().serving());
  EXPECT_FALSE(engine_->wait_idle(milliseconds(1)));
  answer_all(7);
  EXPECT_EQ(sink->end, "length");
  EXPECT_TRUE(engine_->wait_idle(milliseconds(1)));
}

TEST_F(EngineTest, StopEndsEveryRequest) {
  auto running = submit("a");
  turn();
  auto queued = submit("b");
  engine_->stop("SIGTERM");
  engine_->stop("again");
  for (const auto& sink : {running, queued}) {
    EXPECT_EQ(sink->end, "UNAVAILABLE");
    EXPECT_NE(sink->error.find("SIGTERM"), std::string::npos) << sink->error;
  }
  expect_error(Code::kUnavailable, "SIGTERM", [&] { submit("c"); });
  EXPECT_TRUE(engine_->wait_idle(milliseconds(0)));
}

TEST_F(EngineTest, ServesManyThreadsFromItsOwn) {
  engine_->start();
  std::atomic<bool> ended{false};
  std::thread workers([&] {
    while (!ended) {
      for (const auto& [rank, message] : channel_.wait_sent(milliseconds(10))) {
        if (rank % 2 == 0) channel_.report_result(rank, answer(message.micro_batch(), 7));
      }
    }
  });
  std::atomic<int> num_refused{0};
  std::vector<std::vector<std::shared_ptr<RecordingSink>>> sinks(4);
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 50; ++i) {
        const std::string id = std::to_string(client) + "-" + std::to_string(i);
        for (;;) {
          try {
            sinks[client].push_back(submit(id, 1 + i % 8, 1 + i % 12));
            break;
          } catch (const Error& error) {
            ASSERT_EQ(error.code(), Code::kResourceExhausted);
            ++num_refused;
            std::this_thread::sleep_for(milliseconds(1));
          }
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(engine_->wait_idle(std::chrono::seconds(20)));
  for (const auto& list : sinks) {
    for (size_t i = 0; i < list.size(); ++i) {
      EXPECT_EQ(list[i]->end, "length");
      EXPECT_EQ(list[i]->tokens.size(), 1 + i % 12);
    }
  }
  engine_->stop("done");
  ended = true;
  workers.join();
}

TEST_F(EngineTest, WakesForADeadline) {
  engine_->start();
  Request asked = request("r");
  asked.deadline = Clock::now() + milliseconds(60);
  auto sink = std::static_pointer_cast<RecordingSink>(asked.sink);
  engine_->submit(std::move(asked));
  ASSERT_TRUE(engine_->wait_idle(std::chrono::seconds(5)));
  EXPECT_EQ(sink->end, "DEADLINE_EXCEEDED");
}

TEST_F(EngineTest, SleepsWhenIdle) {
  const auto cpu_ms = [] {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
  };
  engine_->start();
  std::this_thread::sleep_for(milliseconds(50));
  // The best of some: beside other work the system charges a sleeper milliseconds at times.
  double least = 1e9;
  for (int i = 0; i < 8 && least >= 0.25; ++i) {
    const double before = cpu_ms();
    std::this_thread::sleep_for(milliseconds(250));
    least = std::min(least, cpu_ms() - before);
  }
  EXPECT_LT(least, 0.25);  // 0.1 % of one core
}

}  // namespace
}  // namespace trireme
