// SPDX-License-Identifier: Apache-2.0
// Which attention the bench of tests/gpu says is faster.
#include "tests/gpu/attention_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

TimedAttention timed(std::vector<double> us, double error = 1e-3) {
  for (double& value : us) value *= 1e-6;
  return {us, "", error};
}

AttentionRow row(const TimedAttention& ours, const TimedAttention& paged) {
  AttentionRow made;
  made.shape = "decode";
  made.bytes = 4e7;
  made.operations = 2e9;
  made.ours = ours;
  made.paged = paged;
  made.contiguous.missing = "no engine";
  return made;
}

TEST(AttentionTable, NamesTheFasterOne) {
  EXPECT_EQ(row(timed({40, 10, 41}), timed({20, 25, 90})).winner(), "cuDNN");
  EXPECT_EQ(row(timed({20}), timed({40})).winner(), "ours");
  EXPECT_EQ(row(timed({101}), timed({100})).winner(), "alike");
  EXPECT_EQ(row(timed({100}), timed({101})).winner(), "alike");
}

TEST(AttentionTable, AWrongResultWinsNothing) {
  EXPECT_EQ(row(timed({40}), timed({20}, 0.5)).winner(), "ours: cuDNN is wrong");
  EXPECT_EQ(row(timed({40}), timed({20}, NAN)).winner(), "ours: cuDNN is wrong");
  EXPECT_EQ(row(timed({20}, 0.5), timed({40})).winner(), "none: ours is wrong");
  EXPECT_FALSE(row(timed({40}), timed({20}, NAN)).right());
  EXPECT_TRUE(row(timed({40}), timed({20})).right());
}

TEST(AttentionTable, AMissingOneIsToldAsMissing) {
  const TimedAttention none{{}, "no library", 0};
  const AttentionRow made = row(timed({40}), none);
  EXPECT_EQ(made.winner(), "ours: cuDNN has none");
  EXPECT_TRUE(made.right());
  EXPECT_EQ(made.line(), "| decode | 40.0 | 1.00 | 50 | none | none | - | ours: cuDNN has none |");
}

TEST(AttentionTable, LinesHaveTheColumnsOfTheHead) {
  const AttentionRow made = row(timed({40}), timed({20}, 0.5));
  EXPECT_EQ(made.line(),
            "| decode | 40.0 | 1.00 | 50 | 20.0 WRONG | none | 2.00 | ours: cuDNN is wrong |");
  const auto columns = [](const std::string& line) {
    return std::count(line.begin(), line.end(), '|');
  };
  EXPECT_EQ(columns(made.line()), columns(AttentionRow::head()));
}

}  // namespace
}  // namespace trireme
