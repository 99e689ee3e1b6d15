// SPDX-License-Identifier: Apache-2.0
#include "coordinator/block_manager.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace trireme {
namespace {

TEST(BlockManager, GivesEachBlockOnce) {
  BlockManager blocks(7);
  std::vector<int32_t> a, b;
  ASSERT_TRUE(blocks.grow(a, 3));
  ASSERT_TRUE(blocks.grow(b, 2));
  ASSERT_TRUE(blocks.grow(a, 5));
  EXPECT_EQ(blocks.num_free(), 0);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_EQ(all, (std::set<int32_t>{0, 1, 2, 3, 4, 5, 6}));
}

TEST(BlockManager, GrowthKeepsWhatIsThereAndNeverShrinks) {
  BlockManager blocks(4);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.grow(table, 2));
  const std::vector<int32_t> before = table;
  ASSERT_TRUE(blocks.grow(table, 1));
  EXPECT_EQ(table, before);
  ASSERT_TRUE(blocks.grow(table, 3));
  EXPECT_TRUE(std::equal(before.begin(), before.end(), table.begin()));
}

TEST(BlockManager, ChangesNothingWhenTooFewAreFree) {
  BlockManager blocks(4);
  std::vector<int32_t> table, other;
  ASSERT_TRUE(blocks.grow(other, 2));
  EXPECT_FALSE(blocks.grow(table, 3));
  EXPECT_TRUE(table.empty());
  EXPECT_EQ(blocks.num_free(), 2);
}

TEST(BlockManager, ReleasedBlocksComeBackInTheirOrder) {
  BlockManager blocks(8);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.grow(table, 5));
  const std::vector<int32_t> before = table;
  blocks.release(table);
  EXPECT_TRUE(table.empty());
  EXPECT_EQ(blocks.num_free(), 8);
  ASSERT_TRUE(blocks.grow(table, 5));
  EXPECT_EQ(table, before);
}

TEST(BlockManagerDeathTest, ReleasingTwiceIsABug) {
  BlockManager blocks(2);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.grow(table, 1));
  std::vector<int32_t> copy = table;
  blocks.release(table);
  EXPECT_DEATH(blocks.release(copy), "was not owned");
}

}  // namespace
}  // namespace trireme
