// SPDX-License-Identifier: Apache-2.0
#include "worker/kv_cache.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

constexpr uint64_t kBlock = uint64_t{1} << 20;

int32_t blocks(uint64_t free_bytes, uint64_t growth = 0) {
  return room_for_cache(DeviceMemory{free_bytes, uint64_t{8} << 30}, kBlock, growth, 1000)
      .num_blocks();
}

TEST(KvRoom, IsWhatTheMemoryHoldsBesideWhatIsKept) {
  EXPECT_EQ(blocks(uint64_t{8} << 30), 1000) << "never more than planned";
  EXPECT_EQ(blocks(kMemoryKept + 1000 * kBlock), 1000);
  EXPECT_EQ(blocks(kMemoryKept + 1000 * kBlock - 1), 999);
  EXPECT_EQ(blocks(kMemoryKept + 1000 * kBlock, 10 * kBlock), 990) << "scratch will grow";
  EXPECT_EQ(blocks(kMemoryKept), 0);
  EXPECT_EQ(blocks(kMemoryKept - 1), 0);
  EXPECT_EQ(blocks(0), 0);
}

TEST(KvRoom, OfTheHostIsAsPlanned) {
  const KvRoom room = room_for_cache(std::nullopt, kBlock, 0, 17);
  EXPECT_EQ(room.num_blocks(), 17);
  EXPECT_EQ(room.free_bytes(), 0u);
}

TEST(KvRoom, AStageWithoutLayersNeedsNone) {
  EXPECT_EQ(room_for_cache(DeviceMemory{0, 1}, 0, 0, 17).num_blocks(), 17);
}

}  // namespace
}  // namespace trireme
