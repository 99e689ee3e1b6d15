// SPDX-License-Identifier: Apache-2.0
// The scheduler's choices, one by one. That any mixture of them keeps its invariants:
// tests/simulation.
#include "coordinator/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {
namespace {

SchedulerOptions options(int32_t stages, int32_t blocks) {
  SchedulerOptions result;
  result.num_stages = stages;
  result.num_blocks = blocks;
  result.block_size = 4;
  result.max_sequences = 64;
  result.max_batch_tokens = 64;
  result.vocab_size = 1000;
  return result;
}

std::vector<int32_t> prompt(int32_t size) {
  std::vector<int32_t> ids(size);
  for (int32_t i = 0; i < size; ++i) ids[i] = 100 + i;
  return ids;
}

// What a worker answers: every chunk that samples draws token 7.
MicroBatchResult answer(const MicroBatch& batch) {
  MicroBatchResult result;
  result.set_id(batch.id());
  for (const SequenceChunk& chunk : batch.chunks()) {
    if (!chunk.sample()) continue;
    SampledToken& token = *result.add_tokens();
    token.set_sequence(chunk.sequence());
    token.set_token(7);
  }
  return result;
}

std::vector<uint64_t> sequences(const MicroBatch& batch) {
  std::vector<uint64_t> ids;
  for (const SequenceChunk& chunk : batch.chunks()) ids.push_back(chunk.sequence());
  return ids;
}

using Ids = std::vector<uint64_t>;

// Keeps the pipeline full: dispatches all it can, then takes the oldest result.
class Pipeline {
 public:
  explicit Pipeline(Scheduler& scheduler) : scheduler_(scheduler) {}

  // The micro-batch that ended, or nullopt if none was in flight.
  std::optional<MicroBatch> step() {
    while (std::optional<MicroBatch> batch = scheduler_.next()) in_flight_.push_back(*batch);
    if (in_flight_.empty()) return std::nullopt;
    MicroBatch done = std::move(in_flight_.front());
    in_flight_.pop_front();
    for (const auto& drawn : scheduler_.complete(answer(done))) ++num_drawn[drawn.sequence];
    return done;
  }

  std::map<uint64_t, int> num_drawn;

 private:
  Scheduler& scheduler_;
  std::deque<MicroBatch> in_flight_;
};

TEST(Scheduler, SaysHowToDraw) {
  Scheduler scheduler(options(1, 10));
  SamplingParams sampling;
  sampling.min_p = 0.1;
  sampling.repetition_penalty = 1.2;
  sampling.frequency_penalty = -0.5;
  sampling.presence_penalty = 0.25;
  sampling.logit_bias = {{4, -100}, {9, 2.5}};
  sampling.min_tokens = 2;
  sampling.banned_ids = {7, 8};
  scheduler.add(5, prompt(3), sampling);
  scheduler.add(6, prompt(3), SamplingParams());
  for (int32_t num_output = 0; num_output < 4; ++num_output) {
    const MicroBatch batch = scheduler.next().value();
    const DrawSpec& draw = batch.chunks(0).draw();
    EXPECT_EQ(draw.min_p(), 0.1);
    EXPECT_EQ(draw.repetition_penalty(), 1.2);
    EXPECT_EQ(draw.frequency_penalty(), -0.5);
    EXPECT_EQ(draw.presence_penalty(), 0.25);
    EXPECT_EQ(draw.num_prompt(), 3);
    ASSERT_EQ(draw.bias_ids_size(), 2);
    EXPECT_EQ(draw.bias_ids(1), 9);
    EXPECT_EQ(draw.biases(1), 2.5);
    // Two tokens first.
    EXPECT_EQ(draw.banned_ids_size(), num_output < 2 ? 2 : 0) << num_output;
    // Nothing is sent of what is off.
    const DrawSpec& plain = batch.chunks(1).draw();
    EXPECT_LE(plain.ByteSizeLong(), 20u) << plain.ShortDebugString();
    scheduler.complete(answer(batch));
  }
}

// A reporter that keeps to this has never more histories than sequences run.
TEST(Scheduler, ReleasesHistoriesOfWhatRunsNoMore) {
  Scheduler scheduler(options(1, 4));  // two sequences of eight tokens
  SamplingParams penalties;
  penalties.presence_penalty = 1;
  scheduler.add(1, prompt(6), penalties);
  scheduler.add(2, prompt(3), penalties);
  scheduler.add(3, prompt(1), SamplingParams());
  scheduler.add(4, prompt(14), penalties);  // waits: never dispatched
  const auto released = [](const MicroBatch& batch) {
    return Ids(batch.released().begin(), batch.released().end());
  };
  Pipeline pipeline(scheduler);
  std::vector<Ids> all;
  for (int step = 0; step < 12 && pipeline.num_drawn[1] < 9; ++step) {
    const MicroBatch batch = pipeline.step().value();
    if (!batch.released().empty()) all.push_back(released(batch));
  }
  // The younger two were preempted when the eldest needed their blocks; the third has no history.
  EXPECT_EQ(all, std::vector<Ids>{{2}});
  scheduler.drop(4);
  scheduler.drop(1);
  scheduler.drop(1);
  const MicroBatch batch = pipeline.step().value();
  EXPECT_EQ(released(batch), Ids{1});
  EXPECT_EQ(sequences(batch), (Ids{2, 3}));  // again, from position 0
  EXPECT_EQ(batch.chunks(0).position(), 0);
  EXPECT_EQ(batch.chunks(0).draw().num_prompt(), 3);  // its output is no prompt now
  EXPECT_GT(batch.chunks(0).token_ids_size(), 3);
}

TEST(Scheduler, CutsAPromptIntoChunksAndSamplesAtItsEnd) {
  SchedulerOptions small = options(1, 10);
  small.max_batch_tokens = 10;
  Scheduler scheduler(small);
  SamplingParams sampling;
  sampling.temperature = 0.5f;
  sampling.top_p = 0.9f;
  sampling.top_k = 40;
  sampling.seed = 123;
  sampling.logprobs = 2;
  scheduler.add(5, prompt(25), sampling);
  int32_t position = 0;
  for (const int32_t size : {10, 10, 5}) {
    const MicroBatch batch = scheduler.next().value();
    ASSERT_EQ(batch.chunks_size(), 1);
    const SequenceChunk& chunk = batch.chunks(0);
    EXPECT_EQ(chunk.sequence(), 5u);
    EXPECT_EQ(chunk.position(), position);
    ASSERT_EQ(chunk.token_ids_size(), size);
    EXPECT_EQ(chunk.token_ids(0), 100 + position);
    position += size;
    // Just the blocks of positions [0, position): four each.
    EXPECT_EQ(chunk.block_table_size(), (position + 3) / 4);
    EXPECT_EQ(chunk.sample(), position == 25);
    EXPECT_EQ(chunk.draw().temperature(), 0.5f);
    EXPECT_EQ(chunk.draw().top_p(), 0.9f);
    EXPECT_EQ(chunk.draw().top_k(), 40);
    EXPECT_EQ(chunk.draw().seed(), 123u);
    EXPECT_EQ(chunk.draw().logprobs(), 2);
    EXPECT_FALSE(scheduler.next().has_value());
    const MicroBatchResult result = answer(batch);
    const auto drawn = scheduler.complete(result);
    EXPECT_EQ(drawn.size(), position == 25 ? 1u : 0u);
  }
  const MicroBatch decode = scheduler.next().value();
  EXPECT_EQ(decode.chunks(0).position(), 25);
  ASSERT_EQ(decode.chunks(0).token_ids_size(), 1);
  EXPECT_EQ(decode.chunks(0).token_ids(0), 7);
  EXPECT_TRUE(decode.chunks(0).sample());
}

TEST(Scheduler, SpreadsDecodesEvenlyAndSteadily) {
  Scheduler scheduler(options(2, 1000));
  Pipeline pipeline(scheduler);
  // One comes alone, fifteen a step later: the worst beginning.
  scheduler.add(1, prompt(3), {});
  ASSERT_TRUE(pipeline.step().has_value());
  for (uint64_t id = 2; id <= 16; ++id) scheduler.add(id, prompt(3), {});
  for (int i = 0; i < 6; ++i) pipeline.step();
  for (int i = 0; i < 40; ++i) EXPECT_EQ(pipeline.step()->chunks_size(), 8) << "step " << i;

  // Six of one micro-batch leave: ten are left, five in each.
  const MicroBatch batch = pipeline.step().value();
  for (int i = 0; i < 6; ++i) scheduler.drop(batch.chunks(i).sequence());
  for (int i = 0; i < 4; ++i) pipeline.step();
  for (int i = 0; i < 40; ++i) EXPECT_EQ(pipeline.step()->chunks_size(), 5) << "step " << i;
}

TEST(Scheduler, AnOddNumberIsSpreadTooAndAllMoveOn) {
  for (const int32_t stages : {1, 2, 3, 4}) {
    Scheduler scheduler(options(stages, 1000));
    Pipeline pipeline(scheduler);
    for (uint64_t id = 1; id <= 7; ++id) scheduler.add(id, prompt(2), {});
    for (int i = 0; i < 60 * stages; ++i) {
      const int size = pipeline.step()->chunks_size();
      if (i >= 4 * stages) {
        EXPECT_LE(size, (7 + stages - 1) / stages);
      }
    }
    for (uint64_t id = 1; id <= 7; ++id) EXPECT_GE(pipeline.num_drawn[id], 50) << stages;
  }
}

TEST(Scheduler, NewOnesWaitWhileDecodesFillTheBudget) {
  SchedulerOptions small = options(1, 1000);
  small.max_batch_tokens = 3;
  Scheduler scheduler(small);
  Pipeline pipeline(scheduler);
  for (uint64_t id = 1; id <= 8; ++id) scheduler.add(id, prompt(1), {});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2, 3}));
  scheduler.drop(2);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 3, 4}));
}

TEST(Scheduler, DecodesGoFirstThenPromptsInOrderOfArrival) {
  SchedulerOptions small = options(1, 1000);
  small.max_batch_tokens = 12;
  Scheduler scheduler(small);
  Pipeline pipeline(scheduler);
  scheduler.add(1, prompt(2), {});
  pipeline.step();
  scheduler.add(2, prompt(20), {});
  scheduler.add(3, prompt(5), {});
  EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2}));     // 1 + 11
  EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2, 3}));  // 1 + 9 + 2
  EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2, 3}));  // 1 + 1 + 3
}

TEST(Scheduler, ALaterPromptMayUseAStageThatAnEarlierOneCannot) {
  SchedulerOptions small = options(2, 1000);
  small.max_batch_tokens = 8;
  Scheduler scheduler(small);
  scheduler.add(1, prompt(20), {});
  scheduler.add(2, prompt(20), {});
  const MicroBatch first = scheduler.next().value();
  const MicroBatch second = scheduler.next().value();
  EXPECT_EQ(sequences(first), Ids{1});
  EXPECT_EQ(sequences(second), Ids{2});
  EXPECT_FALSE(scheduler.next().has_value());
  scheduler.complete(answer(first));
  EXPECT_EQ(sequences(*scheduler.next()), Ids{1});
}

TEST(Scheduler, AdmitsWithinMaxSequences) {
  SchedulerOptions few = options(1, 1000);
  few.max_sequences = 2;
  Scheduler scheduler(few);
  Pipeline pipeline(scheduler);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.add(id, prompt(2), {});
  EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2}));
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.drop(1);
  EXPECT_EQ(sequences(*pipeline.step()), (Ids{2, 3}));
}

TEST(Scheduler, AdmissionLeavesABlockToEachThatRuns) {
  Scheduler scheduler(options(1, 5));
  Pipeline pipeline(scheduler);
  scheduler.add(1, prompt(8), {});   // two blocks
  scheduler.add(2, prompt(12), {});  // three: then the first could not go on
  EXPECT_EQ(sequences(*pipeline.step()), Ids{1});
  EXPECT_EQ(sequences(*pipeline.step()), Ids{1});
  scheduler.drop(1);
  EXPECT_EQ(sequences(*pipeline.step()), Ids{2});
}

TEST(Scheduler, PreemptsTheYoungestWhichKeepsItsTokens) {
  Scheduler scheduler(options(1, 6));
  Pipeline pipeline(scheduler);
  scheduler.add(1, prompt(7), {});
  scheduler.add(2, prompt(7), {});
  // Two blocks each, then three each at position 8; position 12 is one too many.
  for (int i = 0; i < 6; ++i) EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2})) << i;
  EXPECT_EQ(scheduler.num_blocks_free(), 0);
  EXPECT_EQ(sequences(*pipeline.step()), Ids{1});
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_EQ(scheduler.num_blocks_free(), 2);

  scheduler.drop(1);
  const MicroBatch again = scheduler.next().value();
  ASSERT_EQ(sequences(again), Ids{2});
  const SequenceChunk& chunk = again.chunks(0);
  EXPECT_EQ(chunk.position(), 0);
  ASSERT_EQ(chunk.token_ids_size(), 7 + 6);  // prompt, and the tokens drawn before
  EXPECT_EQ(chunk.token_ids(6), 106);
  EXPECT_EQ(chunk.token_ids(7), 7);
  EXPECT_TRUE(chunk.sample());  // only the next one is drawn
  EXPECT_EQ(scheduler.complete(answer(again)).size(), 1u);
}

TEST(Scheduler, TheYoungerWaitsForTheOlder) {
  Scheduler scheduler(options(1, 6));
  Pipeline pipeline(scheduler);
  scheduler.add(1, prompt(5), {});
  scheduler.add(2, prompt(7), {});
  // The second one is at a block's end two steps before the first: it must not take the first
  // one's.
  for (int i = 0; i < 6; ++i) EXPECT_EQ(sequences(*pipeline.step()), (Ids{1, 2})) << i;
  EXPECT_EQ(scheduler.num_blocks_free(), 0);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(sequences(*pipeline.step()), Ids{1}) << i;
  EXPECT_EQ(scheduler.num_waiting(), 0);  // it kept what it has, too
  EXPECT_EQ(sequences(*pipeline.step()), Ids{1});
  EXPECT_EQ(scheduler.num_waiting(), 1);  // now the first one needed a block
}

TEST(Scheduler, WhatIsInFlightIsNotPreempted) {
  SchedulerOptions small = options(2, 12);
  small.max_batch_tokens = 4;
  Scheduler scheduler(small);
  scheduler.add(1, prompt(4), {});   // one block, and soon the last free one
  scheduler.add(2, prompt(40), {});  // ten blocks, ten chunks
  MicroBatch one = scheduler.next().value();
  MicroBatch two = scheduler.next().value();
  for (int i = 0; i < 4; ++i) {
    scheduler.complete(answer(one));
    one = scheduler.next().value();
    ASSERT_EQ(sequences(one), Ids{1});
    scheduler.complete(answer(two));
    two = scheduler.next().value();
    ASSERT_EQ(sequences(two), Ids{2});
  }
  scheduler.complete(answer(one));  // position 8 needs a block, and the other one is in flight
  EXPECT_FALSE(scheduler.next().has_value());
  EXPECT_EQ(scheduler.num_waiting(), 0);
  scheduler.complete(answer(two));
  EXPECT_EQ(sequences(*scheduler.next()), Ids{1});
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(Scheduler, OneThatNeedsAllBlocksEndsAmongAStreamOfOthers) {
  Scheduler scheduler(options(2, 10));
  Pipeline pipeline(scheduler);
  uint64_t next_id = 1;
  const auto add_short = [&] { scheduler.add(next_id++, prompt(6), {}); };
  for (int i = 0; i < 5; ++i) add_short();
  const uint64_t big = next_id++;
  scheduler.add(big, prompt(20), {});
  int steps = 0;
  while (pipeline.num_drawn[big] < 20) {  // 40 positions: every block there is
    ASSERT_LT(++steps, 300);
    ASSERT_TRUE(pipeline.step().has_value());
    for (uint64_t id = 1; id < next_id; ++id) {
      if (id != big && pipeline.num_drawn[id] >= 6) scheduler.drop(id);
    }
    while (scheduler.num_waiting() < 4) add_short();
  }
}

TEST(Scheduler, ADroppedOneInFlightKeepsItsBlocksUntilItsResultIsIn) {
  Scheduler scheduler(options(1, 6));
  scheduler.add(1, prompt(8), {});
  scheduler.add(2, prompt(4), {});
  const MicroBatch batch = scheduler.next().value();
  ASSERT_EQ(sequences(batch), (Ids{1, 2}));
  scheduler.drop(1);
  scheduler.drop(1);
  EXPECT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(scheduler.num_blocks_free(), 3);
  const MicroBatchResult result = answer(batch);
  const auto drawn = scheduler.complete(result);
  ASSERT_EQ(drawn.size(), 1u);
  EXPECT_EQ(drawn[0].sequence, 2u);
  EXPECT_EQ(scheduler.num_blocks_free(), 5);
  scheduler.drop(2);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.num_blocks_free(), 6);
}

TEST(Scheduler, RefusesResultsThatAreNotItsOwnAndStaysAsItWas) {
  Scheduler scheduler(options(1, 20));
  scheduler.add(1, prompt(3), {});
  scheduler.add(2, prompt(3), {});
  const MicroBatch batch = scheduler.next().value();
  const MicroBatchResult good = answer(batch);
  const auto expect_refused = [&](const MicroBatchResult& bad, const std::string& why) {
    try {
      scheduler.complete(bad);
      ADD_FAILURE() << "accepted: " << why;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kInternal);
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
    EXPECT_EQ(scheduler.num_in_flight(), 1);
  };
  MicroBatchResult bad = good;
  bad.set_id(99);
  expect_refused(bad, "micro-batch 1 is the next to end");
  bad = good;
  bad.mutable_tokens()->RemoveLast();
  expect_refused(bad, "1 tokens, 2 were asked for");
  bad = good;
  *bad.add_tokens() = good.tokens(0);
  expect_refused(bad, "3 tokens, 2 were asked for");
  bad = good;
  bad.mutable_tokens()->SwapElements(0, 1);
  expect_refused(bad, "a token of sequence 2");
  for (const int32_t token : {-1, 1000}) {
    bad = good;
    bad.mutable_tokens(1)->set_token(token);
    expect_refused(bad, "outside the vocabulary of 1000");
  }
  bad = good;
  bad.mutable_tokens(0)->add_logprobs();
  expect_refused(bad, "1 logprobs, at most 0");

  EXPECT_EQ(scheduler.complete(good).size(), 2u);
  EXPECT_THROW(scheduler.complete(good), Error);  // nothing is in flight
}

}  // namespace
}  // namespace trireme
