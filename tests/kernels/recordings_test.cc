// SPDX-License-Identifier: Apache-2.0
// Steps that a GPU replays: what runs when, and what happens where it cannot be recorded.
#include "tests/kernels/fixture.h"

namespace trireme {
namespace {

class RecordingsTest : public BackendTest {
 protected:
  RecordingsTest() : backend_(make(1)), x_(*backend_, DType::kF32, 1, 8) { fill(1); }

  void fill(float value) {
    backend_->synchronize();
    for (int64_t j = 0; j < x_.view().cols; ++j) x_.set(0, j, value);
  }
  // Doubles x, and counts how often it was asked to.
  void replay(uint64_t key) {
    backend_->replay(key, [this] {
      ++asked_;
      backend_->scale(x_, 2);
    });
  }
  double value() {
    backend_->synchronize();
    return naive::element(x_, 0, 0);
  }

  std::unique_ptr<Backend> backend_;
  GuardedTensor x_;
  int asked_ = 0;
};

TEST_P(RecordingsTest, RunOnceRecordOnceThenReplay) {
  ASSERT_TRUE(backend_->can_replay());
  for (int time = 1; time <= 5; ++time) {
    replay(7);
    EXPECT_EQ(value(), 1 << time);
    EXPECT_EQ(asked_, std::min(time, 2));
  }
}

TEST_P(RecordingsTest, KeysAreApart) {
  for (int time = 0; time < 3; ++time) {
    for (uint64_t key = 1; key <= 3; ++key) replay(key);
  }
  EXPECT_EQ(value(), 1 << 9);
  EXPECT_EQ(asked_, 6);
}

TEST_P(RecordingsTest, ThoseNotUsedForLongestMakeRoom) {
  constexpr uint64_t kMany = 200;
  replay(1);
  replay(1);
  for (uint64_t key = 2; key <= kMany; ++key) {
    fill(1);
    replay(key);
    replay(1);
    EXPECT_EQ(value(), 4);
  }
  EXPECT_EQ(asked_, static_cast<int>(kMany) + 1) << "the one in use was thrown away";
  replay(2);
  replay(2);
  EXPECT_EQ(asked_, static_cast<int>(kMany) + 3) << "one not used for long was kept";
}

// To wait is what no recording can hold.
TEST_P(RecordingsTest, WhatCannotBeRecordedStillRuns) {
  const auto run = [this] {
    backend_->replay(1, [this] {
      ++asked_;
      backend_->scale(x_, 2);
      backend_->synchronize();
    });
  };
  run();
  run();
  EXPECT_EQ(value(), 4);
  EXPECT_EQ(asked_, 3) << "recorded in vain, then run";
  run();
  EXPECT_EQ(value(), 8);
  replay(2);
  replay(2);
  replay(2);
  EXPECT_EQ(value(), 64);
  EXPECT_EQ(asked_, 7) << "no recording is tried again";
}

TEST_P(RecordingsTest, NoneWhereNoneAreWanted) {
  BackendOptions options;
  options.device = "cuda";
  options.record_steps = false;
  EXPECT_FALSE(make_backend(options)->can_replay());
}

INSTANTIATE_TEST_SUITE_P(Cuda, RecordingsTest,
                         testing::ValuesIn(gpu_memory_is_readable() &&
                                                   !cuda_devices().devices.empty()
                                               ? std::vector<Path>{{"cuda", DType::kF32}}
                                               : std::vector<Path>{}),
                         path_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(RecordingsTest);

}  // namespace
}  // namespace trireme
