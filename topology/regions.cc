// SPDX-License-Identifier: Apache-2.0
#include "topology/regions.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>

namespace trireme {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr double kCliff = 2;           // one link so much slower than the next faster one
constexpr int kMostRegions = 8;        // a row of hops for every set of them
constexpr int32_t kTypicalBatch = 16;  // at which links are compared

using Matrix = std::vector<std::vector<double>>;

// Joins what is in one set.
class Sets {
 public:
  explicit Sets(size_t count) : parent_(count) { std::iota(parent_.begin(), parent_.end(), 0); }
  size_t of(size_t i) const {
    while (parent_[i] != i) i = parent_[i];
    return i;
  }
  void join(size_t a, size_t b) { parent_[std::max(of(a), of(b))] = std::min(of(a), of(b)); }

  // Numbered in the order of their first members.
  Regions numbered() const {
    std::map<size_t, int> number;
    Regions regions;
    for (size_t i = 0; i < parent_.size(); ++i) {
      regions.push_back(number.emplace(of(i), static_cast<int>(number.size())).first->second);
    }
    return regions;
  }

 private:
  std::vector<size_t> parent_;
};

Sets islands_and_hosts(const Topology& topology, const LinkGraph& links) {
  const auto count = static_cast<size_t>(topology.ranks_size());
  Sets sets(count);
  std::map<int, size_t> islands;
  std::map<std::string, size_t> hosts;
  for (size_t i = 0; i < count; ++i) {
    const int worker = static_cast<int>(i);
    if (topology.islands_size() == 0) {
      sets.join(hosts.emplace(topology.ranks(worker).host(), i).first->second, i);
    } else if (links.island_of(worker) >= 0) {
      sets.join(islands.emplace(links.island_of(worker), i).first->second, i);
    }
  }
  return sets;
}

int count_of(const Regions& regions) {
  return 1 + *std::max_element(regions.begin(), regions.end());
}

// The worst of the links that join all regions of a set in the best way, or the sum of those links
// (Prim 1957). A replica in all of them has no better ones.
double joined(const Matrix& best, size_t set, bool sum) {
  std::vector<double> near(best.size(), kInfinite);
  std::vector<bool> done(best.size(), false);
  double result = 0;
  for (bool first = true;; first = false) {
    size_t next = best.size();
    for (size_t r = 0; r < best.size(); ++r) {
      if (!(set >> r & 1) || done[r]) continue;
      if (next == best.size() || near[r] < near[next]) next = r;
    }
    if (next == best.size()) return result;
    if (!first) result = sum ? result + near[next] : std::max(result, near[next]);
    done[next] = true;
    for (size_t r = 0; r < best.size(); ++r) near[r] = std::min(near[r], best[next][r]);
  }
}

// The best link between any two workers of two regions, by what `cost` says of a link.
template <typename Cost>
Matrix best_between(const LinkGraph& links, const Regions& regions, const Cost& cost) {
  const auto count = static_cast<size_t>(count_of(regions));
  Matrix best(count, std::vector<double>(count, kInfinite));
  for (size_t i = 0; i < regions.size(); ++i) {
    for (size_t j = 0; j < regions.size(); ++j) {
      if (i == j) continue;
      double& least = best[static_cast<size_t>(regions[i])][static_cast<size_t>(regions[j])];
      least = std::min(least, cost(links.between(static_cast<int>(i), static_cast<int>(j))));
    }
  }
  return best;
}

}  // namespace

std::vector<Regions> find_regions(const Topology& topology, const LinkGraph& links,
                                  const PlacementOptions& options, const ModelCost& model) {
  const auto count = static_cast<size_t>(topology.ranks_size());
  const double row = model.hidden * options.assumptions.hop_element_bytes;
  struct Pair {
    double seconds;
    size_t a, b;
  };
  std::vector<Pair> pairs;
  for (size_t a = 0; a < count; ++a) {
    for (size_t b = a + 1; b < count; ++b) {
      const LinkSpeed& link = links.between(static_cast<int>(a), static_cast<int>(b));
      pairs.push_back({request_hop_s(link, options, row, kTypicalBatch), a, b});
    }
  }
  std::sort(pairs.begin(), pairs.end(), [](const Pair& x, const Pair& y) {
    return std::tuple(x.seconds, x.a, x.b) < std::tuple(y.seconds, y.a, y.b);
  });
  std::vector<Regions> divisions;
  Sets sets = islands_and_hosts(topology, links);
  for (size_t i = 0; i + 1 < pairs.size(); ++i) {
    sets.join(pairs[i].a, pairs[i].b);
    if (pairs[i + 1].seconds < kCliff * pairs[i].seconds) continue;
    Regions regions = sets.numbered();
    const int number = count_of(regions);
    if (number == 1) break;
    const bool again = !divisions.empty() && divisions.back() == regions;
    if (number <= kMostRegions && !again) divisions.push_back(std::move(regions));
  }
  return divisions;
}

void fill_region_hops(const LinkGraph& links, const PlacementOptions& options,
                      const Regions& regions, PlannerInput& input) {
  SearchProblem& problem = input.problem;
  const double row = input.model.hidden * options.assumptions.hop_element_bytes;
  problem.pool_region.assign(problem.pools.size(), 0);
  for (const IslandUse& island : input.islands) {
    problem.pool_region[static_cast<size_t>(island.pool)] =
        regions[static_cast<size_t>(island.workers.front())];
  }
  const size_t sets = size_t{1} << count_of(regions);
  const Matrix tokens = best_between(links, regions, [&](const LinkSpeed& link) {
    return hop_s(link.latency_s(), link.bandwidth_bytes_per_s(), row);
  });
  problem.region_hop_token_s.assign(sets, 0);
  for (size_t set = 1; set < sets; ++set) {
    const int crossings = __builtin_popcountll(set) - 1;
    problem.region_hop_token_s[set] = joined(tokens, set, true) - crossings * problem.hop_token_s;
  }
  problem.region_hop_request_s.assign(sets, std::vector<double>(problem.batches.size(), 0));
  for (size_t b = 0; b < problem.batches.size(); ++b) {
    const Matrix best = best_between(links, regions, [&](const LinkSpeed& link) {
      return request_hop_s(link, options, row, problem.batches[b]);
    });
    for (size_t set = 1; set < sets; ++set) {
      const bool one = (set & (set - 1)) == 0;
      const auto region = static_cast<size_t>(__builtin_ctzll(set));
      problem.region_hop_request_s[set][b] =
          one ? best[region][region] : std::max(joined(best, set, false), problem.hop_request_s[b]);
    }
  }
}

}  // namespace trireme
