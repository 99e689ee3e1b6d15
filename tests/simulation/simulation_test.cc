// SPDX-License-Identifier: Apache-2.0
// Runs simulated jobs of seeds N, N+1, … (--seed=N --seeds=K). A failure prints the seed that
// replays it.
#include <gtest/gtest.h>

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

#include "tests/simulation/scenario.h"

namespace trireme {
namespace {

constexpr uint64_t kSeeds = 500;
uint64_t first_seed = 1;
uint64_t num_seeds = kSeeds;

void print(const Tally& tally) {
  std::cout << tally.requests << " requests, " << tally.tokens << " tokens, " << tally.steps
            << " steps: " << tally.stopped << " stopped, " << tally.full_length << " full length, "
            << tally.cancelled << " cancelled, " << tally.refused << " refused, "
            << tally.unavailable << " unavailable, " << tally.internal << " internal, "
            << tally.deadline_exceeded << " past their deadline; " << tally.replicas_lost
            << " replicas lost, " << tally.moved << " requests moved, " << tally.restarts
            << " preempted\n";
}

TEST(Simulation, HoldsItsInvariants) {
  Tally tally;
  for (uint64_t seed = first_seed; seed < first_seed + num_seeds; ++seed) {
    Scenario scenario(seed);
    const std::optional<std::string> violation = scenario.run();
    ASSERT_FALSE(violation.has_value()) << *violation << "\nreplay: --seed=" << seed;
    scenario.add_to(tally);
  }
  print(tally);
  if (num_seeds < kSeeds) return;
  // So many seeds must reach every case; else the drawing of scenarios is broken.
  for (const int64_t count : {tally.stopped, tally.full_length, tally.cancelled, tally.refused,
                              tally.unavailable, tally.internal, tally.deadline_exceeded,
                              tally.replicas_lost, tally.restarts, tally.moved}) {
    EXPECT_GE(count, 20);
  }
}

// The same seed tells the same story: else a failure could not be replayed.
TEST(Simulation, ReplaysASeed) {
  Tally one, two;
  for (Tally* tally : {&one, &two}) {
    Scenario scenario(first_seed);
    scenario.run();
    scenario.add_to(*tally);
  }
  EXPECT_EQ(one.steps, two.steps);
  EXPECT_EQ(one.tokens, two.tokens);
}

bool read_flag(std::string_view argument, std::string_view flag, uint64_t& value) {
  if (argument.substr(0, flag.size()) != flag) return false;
  argument.remove_prefix(flag.size());
  const auto [end, error] =
      std::from_chars(argument.data(), argument.data() + argument.size(), value);
  return error == std::errc() && end == argument.data() + argument.size();
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  bool has_seed = false;
  bool has_count = false;
  for (int i = 1; i < argc; ++i) {
    if (trireme::read_flag(argv[i], "--seed=", trireme::first_seed)) {
      has_seed = true;
    } else if (trireme::read_flag(argv[i], "--seeds=", trireme::num_seeds)) {
      has_count = true;
    } else {
      std::fprintf(stderr, "unknown argument %s; known: --seed=N --seeds=K\n", argv[i]);
      return 2;
    }
  }
  if (has_seed && !has_count) trireme::num_seeds = 1;  // a replay
  return RUN_ALL_TESTS();
}
