// SPDX-License-Identifier: Apache-2.0
#include "topology/shard.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/support/models.h"

namespace trireme {
namespace {

class ShardCover : public testing::TestWithParam<int> {};

TEST_P(ShardCover, EveryHeadColumnAndRowOnce) {
  const int degree = GetParam();
  for (const ModelSpec& model : {smollm2(), chatglm3(), make_model(3, 8, 2, 8, 168, 576)}) {
    if (degree > model.num_heads()) {
      EXPECT_THROW(make_shard(model, 0, degree), Error);
      continue;
    }
    const int32_t group = model.num_heads() / model.num_kv_heads();
    int32_t head = 0, column = 0, row = 0;
    for (int tp_rank = 0; tp_rank < degree; ++tp_rank) {
      const ShardSpec shard = make_shard(model, tp_rank, degree);
      EXPECT_EQ(shard.heads().begin(), head);
      EXPECT_EQ(shard.ffn().begin(), column);
      EXPECT_EQ(shard.vocab().begin(), row);
      EXPECT_GT(shard.heads().end(), shard.heads().begin());
      EXPECT_EQ(shard.ffn().begin() % kFfnUnit, 0);
      // Just the KV heads that its query heads read.
      EXPECT_EQ(shard.kv_heads().begin(), shard.heads().begin() / group);
      EXPECT_EQ(shard.kv_heads().end(), (shard.heads().end() - 1) / group + 1);
      EXPECT_NO_THROW(validate_shard(model, shard));
      head = shard.heads().end();
      column = shard.ffn().end();
      row = shard.vocab().end();
    }
    EXPECT_EQ(head, model.num_heads());
    EXPECT_EQ(column, model.ffn_size());
    EXPECT_EQ(row, model.vocab_size());
  }
}

INSTANTIATE_TEST_SUITE_P(Degrees, ShardCover, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33));

TEST(Shard, SmolLm2OverTwoRanksReplicatesTheStraddledKvHead) {
  const ShardSpec first = make_shard(smollm2(), 0, 2);
  const ShardSpec second = make_shard(smollm2(), 1, 2);
  EXPECT_EQ(first.heads().end(), 4);
  EXPECT_EQ(first.kv_heads().end(), 2);
  EXPECT_EQ(second.kv_heads().begin(), 1);
  EXPECT_EQ(second.kv_heads().end(), 3);
}

TEST(Shard, WeightBytesOfWholeChatGlm3AreItsParameters) {
  const ModelSpec model = chatglm3();
  StageSpec stage;
  stage.mutable_layers()->set_end(model.num_layers());
  stage.set_has_embedding(true);
  stage.set_has_head(true);
  const ShardSpec whole = make_shard(model, 0, 1);
  // 6,243,584,000 parameters in 16 bit; norms and biases in fp32 add two bytes each.
  const uint64_t vectors = 28 * (2 * 4096 + 4608) + 4096;
  Placement placement;
  placement.set_dtype("bf16");
  EXPECT_EQ(weight_bytes(model, stage, whole, placement), 2 * 6243584000u + 2 * vectors);
}

// Half a byte or a byte a value, two bytes for each 128 of a row; a group that a cut straddles
// counts on both sides.
TEST(Shard, WeightBytesOfIntegers) {
  const ModelSpec model = chatglm3();
  StageSpec stage;
  stage.mutable_layers()->set_end(1);
  const uint64_t vectors = 4 * (2 * 4096 + 4608);
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    Placement placement;
    placement.set_dtype("bf16");
    *placement.mutable_weight_dtypes() = layers_of(model, dtype);
    const auto bytes = [&](int tp_rank, int tp) {
      ShardSpec shard = make_shard(model, tp_rank, tp);
      shard.set_device(DEVICE_KIND_CUDA);
      return weight_bytes(model, stage, shard, placement);
    };
    const uint64_t values = uint64_t{4096} * (4608 + 4096 + 3 * 13696);
    const uint64_t packed = (dtype == DType::kI4 ? values / 2 : values) + values / 128 * 2;
    EXPECT_EQ(bytes(0, 1), packed + vectors);
    uint64_t cut = 0;
    for (const int tp_rank : {0, 1}) cut += bytes(tp_rank, 2);
    // FFN columns are cut at 6848 = 53.5 · 128; two KV heads are one for each rank.
    const uint64_t group = uint64_t{4096} * (dtype == DType::kI4 ? 66 : 130);
    EXPECT_EQ(cut, packed + group + vectors + 4 * 2 * 4096);
  }
}

TEST(Shard, AForeignShardIsRefused) {
  const ModelSpec model = chatglm3();
  ShardSpec shard = make_shard(model, 0, 2);
  shard.mutable_heads()->set_end(33);
  EXPECT_THROW(validate_shard(model, shard), Error);
  shard = make_shard(model, 1, 2);
  shard.mutable_kv_heads()->set_begin(2);
  EXPECT_THROW(validate_shard(model, shard), Error);
  shard = make_shard(model, 0, 1);
  shard.mutable_ffn()->set_begin(-1);
  EXPECT_THROW(validate_shard(model, shard), Error);
}

}  // namespace
}  // namespace trireme
