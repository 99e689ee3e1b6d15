// SPDX-License-Identifier: Apache-2.0
#include "coordinator/retry.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

using std::chrono::milliseconds;

TEST(RetryPace, IsTheMedianTimeBetweenTwoEnds) {
  RetryPace pace;
  RetryPace::Time now{};
  EXPECT_EQ(pace.delay(1), milliseconds(1000));  // not known
  pace.ended(now);
  EXPECT_EQ(pace.delay(5), milliseconds(1000));
  now += std::chrono::hours(9);  // a night
  pace.ended(now);
  pace.ended(now += milliseconds(300));
  EXPECT_EQ(pace.delay(1), milliseconds(300));
  EXPECT_EQ(pace.delay(4), milliseconds(1200));
  EXPECT_EQ(pace.delay(0), milliseconds(300));
  EXPECT_EQ(pace.delay(1 << 30), milliseconds(30000));
  for (int i = 0; i < 100; ++i) pace.ended(now += milliseconds(1));  // the old ones are forgotten
  EXPECT_EQ(pace.delay(1), milliseconds(100));
}

TEST(RetryPace, BatchesEndTogether) {
  RetryPace pace;
  RetryPace::Time now{};
  for (int batch = 0; batch < 3; ++batch) {
    now += milliseconds(5000);
    for (int i = 0; i < 32; ++i) pace.ended(now);
  }
  EXPECT_EQ(pace.delay(1), milliseconds(5000));
  EXPECT_EQ(pace.delay(32), milliseconds(5000));
  EXPECT_EQ(pace.delay(33), milliseconds(10000));
}

TEST(TryLater, SaysWhen) {
  const TryLater error("no room", milliseconds(2345));
  EXPECT_EQ(error.code(), Code::kResourceExhausted);
  EXPECT_EQ(error.retry_delay(), milliseconds(2345));
  EXPECT_STREQ(error.what(), "no room; try again in 2.3 s");
}

}  // namespace
}  // namespace trireme
