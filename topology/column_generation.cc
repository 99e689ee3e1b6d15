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

// Replicas that are known, and the linear program over them.
class Columns {
 public:
  // `plenty`: those that need more devices of a pool than there are belong to it too. Its value is
  // that of many such clusters, each device of any of them free to work with any other.
  Columns(const SearchProblem& problem, const Islands& islands, bool plenty)
      : problem_(problem), islands_(islands), plenty_(plenty), master_(problem, islands) {}

  bool add(const Replica& replica) {
    if (!known_.insert(replica.counts).second) return false;
    Islands islands = islands_;
    if (!plenty_ && !take_stages(problem_, replica.counts, islands)) return false;
    master_.add(replica);
    replicas_.push_back(replica);
    return true;
  }

  Master& master() { return master_; }
  const std::vector<Replica>& replicas() const { return replicas_; }

 private:
  const SearchProblem& problem_;
  const Islands& islands_;
  bool plenty_;
  Master master_;
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

// What is proved, and the prices that prove it: at them no replica earns more than it costs.
struct Bound {
  double value = std::numeric_limits<double>::infinity();
  Prices prices;
};

// Prices replicas until the program's value is proved to within kGoodGap, or no more are found, or
// the share of the time is over. The program's last value.
double converge(const Pricing& pricing, bool plenty, double share, const Stopwatch& stopwatch,
                Columns& columns, Bound& bound) {
  std::vector<double> times;
  Prices prices;
  double value = columns.master().solve(times, prices);
  double inward = value > 0 ? 0.3 : 0;
  double tolerance = 0.03;
  for (int round = 0; round < 300; ++round) {
    const Prices asked = mix(bound.prices, prices, inward);
    const Priced priced = pricing.price(asked, tolerance, plenty, stopwatch);
    const double proved = priced.worth * columns.master().islands_worth(asked);
    if (proved < bound.value) {
      bound.value = proved;
      // Scaled so that a replica that is worth it costs what it earns.
      bound.prices = asked;
      for (double& price : bound.prices) price *= priced.worth;
    }
    bool added = false;
    for (const Replica& replica : priced.replicas) added = columns.add(replica) || added;
    if (stopwatch.over_share(share)) break;
    if (added) value = columns.master().solve(times, prices);
    if (bound.value <= value * (1 + kGoodGap)) break;
    if (!added) {
      if (tolerance <= 0.001 && inward >= 0.9) break;
      tolerance = std::max(0.001, tolerance / 2);
      inward = std::min(0.95, inward + 0.15);
    } else {
      inward = 0.5;
      tolerance = std::max(0.001, std::min(tolerance, 0.25 * (bound.value / value - 1)));
    }
  }
  return value;
}

}  // namespace

SearchResult generate_columns(const SearchProblem& problem, const std::vector<Replica>& known,
                              const Stopwatch& stopwatch) {
  const Islands islands = islands_of(problem);
  const Pricing pricing(problem, islands);
  Bound bound{std::numeric_limits<double>::infinity(), first_prices(problem)};
  // First as if devices were plenty: soon done, and near the truth where they are.
  Columns many(problem, islands, true), columns(problem, islands, false);
  add_simple(problem, many);
  for (const Replica& replica : known) many.add(replica);
  converge(pricing, true, kShareForColumns, stopwatch, many, bound);
  for (const Replica& replica : many.replicas()) columns.add(replica);
  std::vector<double> times;
  Prices prices;
  double value = columns.master().solve(times, prices);
  if (bound.value > value * (1 + kGoodGap) && !stopwatch.over_share(kShareForColumns)) {
    value = converge(pricing, false, kShareForColumns, stopwatch, columns, bound);
    columns.master().solve(times, prices);
  }
  SearchResult result = round_columns(problem, islands, columns.replicas(), times, stopwatch);
  result.bound = std::max(bound.value, result.value);
  return result;
}

}  // namespace trireme
