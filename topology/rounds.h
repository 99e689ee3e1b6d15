// SPDX-License-Identifier: Apache-2.0
// Which pairs of ranks are measured, and when. Pure.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace trireme {

// A pair of indices, the lower one first.
using Pair = std::pair<int, int>;
using Rounds = std::vector<std::vector<Pair>>;  // the pairs of a round are disjoint

// Every pair of 0..count-1 once, in the fewest rounds (the circle method of tournaments).
Rounds tournament(int count);

// hosts: of each rank, by index. All pairs while there are at most kAllPairsRanks ranks. Beyond, a
// sample whose rounds do not grow with the job: two pairs inside of each host, and three matchings
// of hosts in which every host is busy.
inline constexpr int kAllPairsRanks = 16;
Rounds measurement_rounds(const std::vector<std::string>& hosts);

}  // namespace trireme
