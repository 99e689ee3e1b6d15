// SPDX-License-Identifier: Apache-2.0
#include "topology/rounds.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace trireme {
namespace {

// Pairs in order of their ranks, each round's disjoint.
std::map<Pair, int> count_pairs(const Rounds& rounds, int count) {
  std::map<Pair, int> pairs;
  for (const auto& round : rounds) {
    EXPECT_FALSE(round.empty());
    std::set<int> busy;
    for (const Pair& pair : round) {
      EXPECT_LT(pair.first, pair.second);
      EXPECT_GE(pair.first, 0);
      EXPECT_LT(pair.second, count);
      EXPECT_TRUE(busy.insert(pair.first).second && busy.insert(pair.second).second);
      ++pairs[pair];
    }
  }
  return pairs;
}

TEST(Rounds, EveryPairOnceInTheFewestRounds) {
  EXPECT_TRUE(tournament(0).empty());
  EXPECT_TRUE(tournament(1).empty());
  for (int count = 2; count <= 40; ++count) {
    const Rounds rounds = tournament(count);
    EXPECT_EQ(rounds.size(), static_cast<size_t>(count % 2 == 0 ? count - 1 : count));
    const auto pairs = count_pairs(rounds, count);
    EXPECT_EQ(pairs.size(), static_cast<size_t>(count * (count - 1) / 2));
    for (const auto& [pair, times] : pairs) EXPECT_EQ(times, 1);
  }
}

TEST(Rounds, AllPairsOfASmallJob) {
  EXPECT_EQ(measurement_rounds(std::vector<std::string>(7, "h")), tournament(7));
  EXPECT_TRUE(measurement_rounds({"h"}).empty());
}

// Their number does not grow with the job, and no host is left out.
TEST(Rounds, ASampleOfALargeJob) {
  for (const int num_hosts : {1, 2, 3, 64, 511}) {
    for (const int ranks_per_host : {1, 2, 8, 40}) {
      std::vector<std::string> hosts;
      for (int i = 0; i < num_hosts * ranks_per_host; ++i) {
        hosts.push_back("h" + std::to_string(i % num_hosts));
      }
      if (hosts.size() <= kAllPairsRanks) continue;
      const Rounds rounds = measurement_rounds(hosts);
      EXPECT_LE(rounds.size(), 5u);
      const auto pairs = count_pairs(rounds, static_cast<int>(hosts.size()));
      std::map<std::string, int> inside, between;
      for (const auto& [pair, times] : pairs) {
        const std::string& a = hosts[pair.first];
        const std::string& b = hosts[pair.second];
        if (a == b) {
          ++inside[a];
        } else {
          ++between[a];
          ++between[b];
        }
      }
      EXPECT_EQ(inside.size(), static_cast<size_t>(ranks_per_host > 1 ? num_hosts : 0));
      EXPECT_EQ(between.size(), static_cast<size_t>(num_hosts > 1 ? num_hosts : 0));
    }
  }
}

}  // namespace
}  // namespace trireme
