// SPDX-License-Identifier: Apache-2.0
#include "worker/history.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"

namespace trireme {
namespace {

using Ids = std::vector<int32_t>;

void add_chunk(MicroBatch& batch, uint64_t sequence, int32_t position, const Ids& ids,
               bool penalties = true) {
  SequenceChunk& chunk = *batch.add_chunks();
  chunk.set_sequence(sequence);
  chunk.set_position(position);
  chunk.mutable_token_ids()->Assign(ids.begin(), ids.end());
  if (penalties) chunk.mutable_draw()->set_presence_penalty(0.5);
}

void follow(Histories& histories, uint64_t sequence, int32_t position, const Ids& ids) {
  MicroBatch batch;
  add_chunk(batch, sequence, position, ids);
  histories.follow(batch);
}

Ids of(const Histories& histories, uint64_t sequence) {
  const auto ids = histories.of(sequence);
  return {ids.begin(), ids.end()};
}

TEST(Histories, GrowChunkByChunkWherePenaltiesAre) {
  Histories histories(4);
  MicroBatch batch;
  add_chunk(batch, 1, 0, {5, 6, 7});
  add_chunk(batch, 2, 0, {8}, false);
  add_chunk(batch, 3, 0, {9});
  histories.follow(batch);
  follow(histories, 1, 3, {5});
  EXPECT_EQ(of(histories, 1), (Ids{5, 6, 7, 5}));
  EXPECT_EQ(of(histories, 2), Ids{});
  EXPECT_EQ(of(histories, 3), Ids{9});
  EXPECT_EQ(histories.size(), 2u);
}

TEST(Histories, WhatIsComputedAgainDoesNotCountTwice) {
  Histories histories(4);
  follow(histories, 1, 0, {5, 6});
  follow(histories, 1, 2, {7});
  follow(histories, 1, 0, {5});  // preempted, then in other chunks
  EXPECT_EQ(of(histories, 1), Ids{5});
  follow(histories, 1, 1, {6, 7, 8});
  EXPECT_EQ(of(histories, 1), (Ids{5, 6, 7, 8}));
}

TEST(Histories, GoWhenTheyAreReleased) {
  Histories histories(1);
  follow(histories, 1, 0, {5});
  MicroBatch batch;
  batch.add_released(1);
  batch.add_released(77);  // never known
  add_chunk(batch, 2, 0, {6});
  histories.follow(batch);
  EXPECT_EQ(of(histories, 1), Ids{});
  EXPECT_EQ(of(histories, 2), Ids{6});
  // Preempted and admitted again in one turn.
  batch.Clear();
  batch.add_released(2);
  add_chunk(batch, 2, 0, {6, 9});
  histories.follow(batch);
  EXPECT_EQ(of(histories, 2), (Ids{6, 9}));
}

TEST(Histories, RefuseAGapAndMoreThanCanRun) {
  Histories histories(2);
  follow(histories, 1, 0, {5, 6});
  EXPECT_THROW(follow(histories, 1, 3, {7}), Error);
  EXPECT_THROW(follow(histories, 2, 1, {7}), Error);
  follow(histories, 2, 0, {7});
  EXPECT_THROW(follow(histories, 3, 0, {7}), Error);
  EXPECT_EQ(histories.size(), 2u);
}

}  // namespace
}  // namespace trireme
