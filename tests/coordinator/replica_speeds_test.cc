// SPDX-License-Identifier: Apache-2.0
#include "coordinator/replica_speeds.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

TEST(ReplicaSpeedsTest, AllAreEqualUntilTwoCanBeCompared) {
  ReplicaSpeeds speeds(2);
  EXPECT_EQ(speeds.slowness(0), 1);
  speeds.note(0, 4, 1);
  EXPECT_EQ(speeds.slowness(0), 1);
  EXPECT_EQ(speeds.slowness(1), 1);
  speeds.note(1, 500, 1);  // of another size
  EXPECT_EQ(speeds.slowness(0), 1);
  EXPECT_EQ(speeds.slowness(1), 1);
}

TEST(ReplicaSpeedsTest, ComparesMicroBatchesOfLikeSize) {
  ReplicaSpeeds speeds(3);
  for (const int32_t tokens : {4, 64}) {  // a step costs the same whatever its tokens
    speeds.note(0, tokens, 1);
    speeds.note(1, tokens, 3);
  }
  EXPECT_DOUBLE_EQ(speeds.slowness(1) / speeds.slowness(0), 3);
  EXPECT_EQ(speeds.slowness(2), 1);
  // One that gets small ones only is no slower for that.
  for (int i = 0; i < 100; ++i) speeds.note(0, 1, 1);
  EXPECT_DOUBLE_EQ(speeds.slowness(1) / speeds.slowness(0), 3);
}

TEST(ReplicaSpeedsTest, ForgetsWhatWas) {
  ReplicaSpeeds speeds(2);
  speeds.note(0, 1, 100);  // its first step, cold
  speeds.note(1, 1, 1);
  EXPECT_GT(speeds.slowness(0), 1.9);
  for (int i = 0; i < 100; ++i) speeds.note(0, 1, 1);
  EXPECT_NEAR(speeds.slowness(0), 1, 0.01);
}

}  // namespace
}  // namespace trireme
