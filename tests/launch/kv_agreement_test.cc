// SPDX-License-Identifier: Apache-2.0
#include "launch/kv_agreement.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "topology/placement.h"

namespace trireme {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Two replicas of two stages each; contexts of 64 positions need 4 of the 100 blocks.
class KvAgreementTest : public testing::Test {
 protected:
  void SetUp() override {
    placement_.set_block_size(16);
    placement_.set_num_blocks(100);
    placement_.set_context(64);
    int rank = 0;
    for (int replica = 0; replica < 2; ++replica) {
      ReplicaSpec& spec = *placement_.add_replicas();
      for (int stage = 0; stage < 2; ++stage) {
        RankInfo& info = *topology_.add_ranks();
        info.set_rank(++rank);
        info.set_host("h" + std::to_string(rank));
        info.mutable_device()->set_name("H100");
        info.mutable_device()->set_pci_id("0000:3b:00.0");
        info.mutable_device()->set_memory_bytes(8192 * kMiB);
        ShardSpec& shard = *spec.add_stages()->add_shards();
        shard.set_rank(rank);
        shard.set_kv_bytes(200 * kMiB);
      }
    }
  }

  static KvRoom room(int32_t blocks, const std::string& others = "") {
    KvRoom room;
    room.set_num_blocks(blocks);
    room.set_block_bytes(2 * kMiB);
    room.set_free_bytes(256 * kMiB + static_cast<uint64_t>(blocks) * room.block_bytes());
    room.set_kept_bytes(256 * kMiB);
    room.set_others(others);
    return room;
  }

  std::string refusal(int rank, const KvRoom& word, Code code) {
    try {
      agreement_.take(rank, word);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    return "";
  }

  Topology topology_;
  Placement placement_;
  KvAgreement agreement_{topology_, placement_};
};

TEST_F(KvAgreementTest, AsPlannedWhereAllHaveRoom) {
  EXPECT_FALSE(agreement_.take(1, room(100)));
  EXPECT_FALSE(agreement_.take(3, room(100))) << "another replica's";
  const auto decision = agreement_.take(2, room(100));
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->replica, 0);
  EXPECT_EQ(decision->num_blocks, 100);
  EXPECT_EQ(decision->ranks, (std::vector{1, 2}));
  EXPECT_EQ(decision->why, "");
}

TEST_F(KvAgreementTest, TheRankWithTheLeastRoomDecidesForItsReplica) {
  agreement_.take(4, room(40, "process 4711 (3.0 GiB)"));
  const auto decision = agreement_.take(3, room(60));
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->replica, 1);
  EXPECT_EQ(decision->num_blocks, 40);
  EXPECT_EQ(
      decision->why,
      "replica 1 has 40 KV blocks in place of the planned 100 (640 positions in place of "
      "1600): rank 4 (h4, H100 0000:3b:00.0) has 336.0 MiB of its 8.0 GiB free after the "
      "load, of which 256.0 MiB are kept for libraries and recorded steps, and a block takes 2.0 "
      "MiB; others use that GPU: process 4711 (3.0 GiB)");
  lower_num_blocks(placement_, 1, decision->num_blocks);
  EXPECT_EQ(num_blocks_of(placement_, 0), 100);
  EXPECT_EQ(num_blocks_of(placement_, 1), 40);
  EXPECT_EQ(placement_.replicas(1).stages(1).shards(0).kv_bytes(), 80 * kMiB);
  EXPECT_EQ(placement_.replicas(0).stages(1).shards(0).kv_bytes(), 200 * kMiB);
}

TEST_F(KvAgreementTest, LessThanOneSequenceIsRefused) {
  agreement_.take(1, room(4));
  const std::string why = refusal(2, room(3, "process 4711 (3.0 GiB)"), Code::kResourceExhausted);
  EXPECT_NE(why.find("one sequence of 64 positions needs 4 KV blocks, there is room for 3: rank 2"),
            std::string::npos)
      << why;
  EXPECT_NE(why.find("process 4711"), std::string::npos) << why;
  EXPECT_NE(why.find("or --context 48"), std::string::npos) << why;
  agreement_.take(3, room(100));
  EXPECT_EQ(refusal(4, room(0), Code::kResourceExhausted).find("--context 0"), std::string::npos);
}

TEST_F(KvAgreementTest, JustOneSequenceIsEnough) {
  agreement_.take(1, room(4));
  EXPECT_EQ(agreement_.take(2, room(100))->num_blocks, 4);
}

TEST_F(KvAgreementTest, WhatCannotBeIsRefused) {
  refusal(1, room(101), Code::kInvalidArgument);
  refusal(1, room(-1), Code::kInvalidArgument);
  refusal(7, room(10), Code::kInvalidArgument);
  agreement_.take(1, room(10));
  EXPECT_NE(refusal(1, room(10), Code::kInvalidArgument), "") << "twice";
}

}  // namespace
}  // namespace trireme
