// SPDX-License-Identifier: Apache-2.0
#include "worker/batch_tensors.h"

#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "kernels/base/error.h"
#include "tests/support/models.h"

namespace trireme {
namespace {

Placement small_placement() {
  Placement placement;
  placement.set_block_size(4);
  placement.set_num_blocks(10);
  placement.set_max_sequences(2);
  placement.set_max_batch_tokens(8);
  placement.set_context(16);
  return placement;
}

SequenceChunk& add_chunk(MicroBatch& batch, int32_t position, const std::vector<int32_t>& ids,
                         const std::vector<int32_t>& blocks, bool sample) {
  SequenceChunk& chunk = *batch.add_chunks();
  chunk.set_sequence(static_cast<uint64_t>(batch.chunks_size()));
  chunk.set_position(position);
  for (const int32_t id : ids) chunk.add_token_ids(id);
  for (const int32_t block : blocks) chunk.add_block_table(block);
  chunk.set_sample(sample);
  return chunk;
}

class BatchTensorsTest : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend({});
  BatchTensors tensors_{*backend_, make_model(2, 4, 2, 8, 64, 100), small_placement()};
};

TEST_F(BatchTensorsTest, LaysOutTwoSequences) {
  MicroBatch batch;
  add_chunk(batch, 3, {10, 11, 12}, {7, 2}, true);
  add_chunk(batch, 0, {20}, {5}, true);
  tensors_.load(batch);
  const BatchView& view = tensors_.view();
  ASSERT_EQ(view.num_tokens, 4);
  ASSERT_EQ(view.num_sequences, 2);
  EXPECT_EQ(std::vector(view.token_ids, view.token_ids + 4), (std::vector{10, 11, 12, 20}));
  EXPECT_EQ(std::vector(view.positions, view.positions + 4), (std::vector{3, 4, 5, 0}));
  EXPECT_EQ(std::vector(view.slots, view.slots + 4), (std::vector{31, 8, 9, 20}));
  EXPECT_EQ(std::vector(view.query_begin, view.query_begin + 3), (std::vector{0, 3, 4}));
  EXPECT_EQ(std::vector(view.context, view.context + 2), (std::vector{6, 1}));
  EXPECT_EQ(view.block_tables[view.max_blocks], 5);
  ASSERT_EQ(tensors_.num_sample_rows(), 2);
  EXPECT_EQ(std::vector(tensors_.sample_rows(), tensors_.sample_rows() + 2), (std::vector{2, 3}));
  EXPECT_EQ(tensors_.key(), 0u);
}

TEST_F(BatchTensorsTest, PadsAStepOfDecode) {
  Placement placement = small_placement();
  placement.set_max_sequences(4);
  placement.set_context(2000);
  placement.set_num_blocks(500);
  BatchTensors tensors(*backend_, make_model(2, 4, 2, 8, 64, 100), placement);
  MicroBatch batch;
  add_chunk(batch, 3, {10}, {7}, true);
  add_chunk(batch, 4, {11}, {2, 5}, true);
  add_chunk(batch, 0, {20}, {6}, true);
  tensors.load(batch, true);
  const BatchView& view = tensors.view();
  EXPECT_EQ(tensors.num_tokens(), 3);
  EXPECT_EQ(tensors.num_samples(), 3);
  ASSERT_EQ(view.num_tokens, 4);
  ASSERT_EQ(view.num_sequences, 4);
  ASSERT_EQ(view.max_blocks, 64);
  EXPECT_EQ(view.max_context, 256);
  EXPECT_EQ(std::vector(view.token_ids, view.token_ids + 4), (std::vector{10, 11, 20, 0}));
  EXPECT_EQ(std::vector(view.positions, view.positions + 4), (std::vector{3, 4, 0, 0}));
  EXPECT_EQ(std::vector(view.slots, view.slots + 4), (std::vector{31, 20, 24, -1}));
  EXPECT_EQ(std::vector(view.query_begin, view.query_begin + 5), (std::vector{0, 1, 2, 3, 4}));
  EXPECT_EQ(std::vector(view.context, view.context + 4), (std::vector{4, 5, 1, 1}));
  EXPECT_EQ(view.block_tables[0], 7);
  EXPECT_EQ(view.block_tables[65], 5);
  EXPECT_EQ(view.block_tables[3 * 64], 0);
  ASSERT_EQ(tensors.num_sample_rows(), 4);
  EXPECT_EQ(std::vector(tensors.sample_rows(), tensors.sample_rows() + 4),
            (std::vector{0, 1, 2, 3}));
}

// Equal keys promise that a recorded step's arrays are where they were.
TEST_F(BatchTensorsTest, EqualKeysAreEqualPlaces) {
  Placement placement = small_placement();
  placement.set_max_sequences(8);
  placement.set_context(2000);
  placement.set_num_blocks(500);
  BatchTensors tensors(*backend_, make_model(2, 4, 2, 8, 64, 100), placement);
  const auto load = [&](int sequences, int32_t position) {
    MicroBatch batch;
    const std::vector<int32_t> blocks(static_cast<size_t>(position / 4 + 1), 3);
    for (int s = 0; s < sequences; ++s) add_chunk(batch, position, {1}, blocks, true);
    tensors.load(batch, true);
    return std::tuple(tensors.view().token_ids, tensors.view().slots, tensors.view().query_begin,
                      tensors.view().context, tensors.view().block_tables, tensors.sample_rows(),
                      tensors.view().num_sequences, tensors.view().max_context,
                      tensors.view().max_blocks);
  };
  const auto first = load(5, 10);
  const uint64_t key = tensors.key();
  EXPECT_EQ(load(7, 255), first);
  EXPECT_EQ(tensors.key(), key);
  load(5, 256);
  EXPECT_NE(tensors.key(), key);
  load(4, 10);
  EXPECT_NE(tensors.key(), key);
  EXPECT_EQ(load(8, 3), first);
  EXPECT_EQ(tensors.key(), key);
}

TEST_F(BatchTensorsTest, PadsNothingElse) {
  MicroBatch prompt;
  add_chunk(prompt, 0, {1, 2}, {3}, true);
  tensors_.load(prompt, true);
  EXPECT_EQ(tensors_.key(), 0u);
  MicroBatch unsampled;
  add_chunk(unsampled, 0, {1}, {3}, false);
  tensors_.load(unsampled, true);
  EXPECT_EQ(tensors_.key(), 0u);
  EXPECT_EQ(tensors_.view().num_sequences, 1);
}

class HostileBatch : public BatchTensorsTest, public testing::WithParamInterface<int> {};

TEST_P(HostileBatch, IsRefused) {
  MicroBatch batch;
  SequenceChunk& chunk = add_chunk(batch, 0, {1, 2}, {3}, true);
  ASSERT_NO_THROW(tensors_.load(batch));
  switch (GetParam()) {
    case 0: chunk.set_position(-1); break;
    case 1: chunk.set_position(15); break;
    case 2: chunk.set_position(INT32_MAX); break;
    case 3: chunk.clear_token_ids(); break;
    case 4: chunk.set_token_ids(0, -1); break;
    case 5: chunk.set_token_ids(0, 100); break;
    case 6: chunk.set_block_table(0, 10); break;
    case 7: chunk.set_block_table(0, -1); break;
    case 8: chunk.clear_block_table(); break;
    case 9: batch.clear_chunks(); break;
    case 10:
      for (int index = 0; index < 10; ++index) chunk.add_block_table(1);
      break;
    case 11:
      for (int index = 0; index < 2; ++index) add_chunk(batch, 0, {1}, {1}, false);
      break;
    case 12: add_chunk(batch, 0, {1, 2, 3, 4, 5, 6, 7}, {1, 2}, false); break;
  }
  EXPECT_THROW(tensors_.load(batch), Error);
}

INSTANTIATE_TEST_SUITE_P(Ways, HostileBatch, testing::Range(0, 13));

}  // namespace
}  // namespace trireme
