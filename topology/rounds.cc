// SPDX-License-Identifier: Apache-2.0
#include "topology/rounds.h"

#include <algorithm>
#include <map>

namespace trireme {

Rounds tournament(int count) {
  // The last player stays, the others turn around it; with an odd number who meets the one that is
  // not there rests.
  const int players = count + count % 2;
  Rounds rounds(players > 0 ? players - 1 : 0);
  for (int round = 0; round < players - 1; ++round) {
    for (int i = 0; i < players / 2; ++i) {
      const int turning = players - 1;
      const int a = i == 0 ? turning : (round + i) % turning;
      const int b = (round + turning - i) % turning;
      if (std::max(a, b) < count) rounds[round].emplace_back(std::min(a, b), std::max(a, b));
    }
  }
  std::erase_if(rounds, [](const auto& round) { return round.empty(); });
  return rounds;
}

Rounds measurement_rounds(const std::vector<std::string>& hosts) {
  const int count = static_cast<int>(hosts.size());
  if (count <= kAllPairsRanks) return tournament(count);
  std::map<std::string, std::vector<int>> by_host;
  for (int rank = 0; rank < count; ++rank) by_host[hosts[rank]].push_back(rank);
  std::vector<std::vector<int>> nodes;
  for (auto& [host, ranks] : by_host) nodes.push_back(std::move(ranks));

  Rounds rounds(2);  // the nearest two of a host, and the farthest
  for (const std::vector<int>& ranks : nodes) {
    if (ranks.size() > 1) rounds[0].emplace_back(ranks[0], ranks[1]);
    if (ranks.size() > 2) rounds[1].emplace_back(ranks.front(), ranks.back());
  }
  constexpr size_t kMatchings = 3;
  const Rounds matchings = tournament(static_cast<int>(nodes.size()));
  const size_t chosen = std::min(matchings.size(), kMatchings);
  for (size_t i = 0; i < chosen; ++i) {
    std::vector<Pair>& round = rounds.emplace_back();
    for (const auto& [a, b] : matchings[i * matchings.size() / chosen]) {
      const int x = nodes[a][i % nodes[a].size()];
      const int y = nodes[b][i % nodes[b].size()];
      round.emplace_back(std::min(x, y), std::max(x, y));
    }
  }
  std::erase_if(rounds, [](const auto& round) { return round.empty(); });
  return rounds;
}

}  // namespace trireme
