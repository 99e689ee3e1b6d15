// SPDX-License-Identifier: Apache-2.0
#include "topology/column_generation.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace trireme {
namespace {

constexpr double kGoodGap = 0.002;        // no more is asked of the bound
constexpr double kShareForColumns = 0.6;  // of the time; the rest rounds

// What a stage would earn if layers could be cut at will and nothing else were short: prices to
// begin with, positive for all that can work.
Prices first_prices(const SearchProblem& problem) {
  Prices prices;
  for (const StageType& type : problem.types) {
    double best = 0;
    for (const double request : type.request_s) {
      best = std::max(best, 1 / (problem.layers * request));
    }
    prices.push_back(best);
  }
  return prices;
}

class Columns {
 public:
  Columns(const SearchProblem& problem, const Islands& islands, Master& master)
      : problem_(problem), islands_(islands), master_(master) {}

  bool add(const Replica& replica) {
    if (!known_.insert(replica.counts).second) return false;
    Islands islands = islands_;
    if (!take_stages(problem_, replica.counts, islands)) return false;
    master_.add(replica);
    replicas_.push_back(replica);
    return true;
  }

  const std::vector<Replica>& replicas() const { return replicas_; }

 private:
  const SearchProblem& problem_;
  const Islands& islands_;
  Master& master_;
  std::set<Counts> known_;
  std::vector<Replica> replicas_;
};

// Equal stages of one type, as few and as many as fit.
void add_simple(const SearchProblem& problem, Columns& columns) {
  for (size_t type = 0; type < problem.types.size(); ++type) {
    Counts counts(problem.types.size(), 0);
    double best = 0;
    for (int32_t stages = 1; stages <= 16; ++stages) {
      counts[type] = stages;
      const auto replica = best_replica(problem, counts, best * stages);
      if (!replica) continue;
      best = replica->rate / stages;
      columns.add(*replica);
    }
  }
}

Prices mix(const Prices& a, const Prices& b, double share_of_b) {
  Prices prices;
  for (size_t i = 0; i < a.size(); ++i)
    prices.push_back(a[i] * (1 - share_of_b) + b[i] * share_of_b);
  return prices;
}

}  // namespace

SearchResult generate_columns(const SearchProblem& problem, const std::vector<Replica>& known,
                              const Stopwatch& stopwatch) {
  const Islands islands = islands_of(problem);
  Master master(problem, islands);
  Columns columns(problem, islands, master);
  add_simple(problem, columns);
  for (const Replica& replica : known) columns.add(replica);
  const Pricing pricing(problem, islands);
  std::vector<double> times;
  Prices prices;
  Prices best_prices = first_prices(problem);
  double bound = std::numeric_limits<double>::infinity();
  double value = master.solve(times, prices);
  double share = value > 0 ? 0.3 : 0;
  double tolerance = 0.03;
  for (int round = 0; round < 300; ++round) {
    const Prices asked = mix(best_prices, prices, share);
    const Priced priced = pricing.price(asked, tolerance, stopwatch);
    const double proved = priced.worth * master.islands_worth(asked);
    if (proved < bound) {
      bound = proved;
      // Scaled so that a replica that is worth it costs what it earns.
      best_prices = asked;
      for (double& price : best_prices) price *= priced.worth;
    }
    bool added = false;
    for (const Replica& replica : priced.replicas) added = columns.add(replica) || added;
    if (stopwatch.over_share(kShareForColumns)) break;
    if (added) value = master.solve(times, prices);
    if (bound <= value * (1 + kGoodGap)) break;
    if (!added) {
      if (tolerance <= 0.001 && share >= 0.9) break;
      tolerance = std::max(0.001, tolerance / 2);
      share = std::min(0.95, share + 0.15);
    } else {
      share = 0.5;
      tolerance = std::max(0.001, std::min(tolerance, 0.25 * (bound / value - 1)));
    }
  }
  SearchResult result = round_columns(problem, islands, columns.replicas(), times, stopwatch);
  result.bound = std::max(bound, result.value);
  return result;
}

}  // namespace trireme
