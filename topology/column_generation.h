// SPDX-License-Identifier: Apache-2.0
// The planner's search for many devices. A linear program chooses how many replicas of each known
// shape to make; pricing finds shapes that would improve it, and proves how much better any could
// be; rounding makes whole replicas of it.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "topology/search.h"

namespace trireme {

// Free devices: how many islands of each pool have how many.
using Islands = std::vector<std::map<int32_t, int32_t>>;  // by pool: devices -> islands

Islands islands_of(const SearchProblem& problem);

// Takes the stages out of the islands, largest first, each from the fullest island that holds it.
// False, and `islands` is unchanged, if they do not fit so.
bool take_stages(const SearchProblem& problem, const Counts& counts, Islands& islands);

// The same of one pool; `free` is then what is left, or anything if they do not fit.
bool take_from_pool(const SearchProblem& problem, size_t pool, const Counts& counts,
                    std::map<int32_t, int32_t>& free);

// Prices of stage types, per second: what a stage costs a replica that uses it.
using Prices = std::vector<double>;

struct Priced {
  double worth = 0;               // no replica earns more than this many times what its stages cost
  std::vector<Replica> replicas;  // the best ones found, best first
};

// Looks for the replicas with the greatest rate per cost, to within `tolerance` (relative) unless
// time runs out; `worth` is an upper bound in any case.
class Pricing {
 public:
  Pricing(const SearchProblem& problem, const Islands& islands);
  ~Pricing();
  // `plenty`: replicas may need more devices than there are, which is asked sooner.
  Priced price(const Prices& prices, double tolerance, bool plenty,
               const Stopwatch& stopwatch) const;

 private:
  struct Table;
  const SearchProblem& problem_;
  std::unique_ptr<Table> table_;
};

// The linear program over the replicas in `columns`. Stage counts are bounded by the ways in which
// islands can be cut, which are generated too.
class Master {
 public:
  Master(const SearchProblem& problem, const Islands& islands);
  ~Master();
  void add(const Replica& replica);
  // Its value; fills how often each column is used, and the prices.
  double solve(std::vector<double>& times, Prices& prices);
  // Value of the islands at these prices: with Priced::worth, an upper bound on every placement.
  double islands_worth(const Prices& prices) const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

// `known`: replicas to begin with, such as those of an earlier placement.
SearchResult generate_columns(const SearchProblem& problem, const std::vector<Replica>& known,
                              const Stopwatch& stopwatch);

// Whole replicas from the linear program's solution.
SearchResult round_columns(const SearchProblem& problem, const Islands& islands,
                           const std::vector<Replica>& columns, const std::vector<double>& times,
                           const Stopwatch& stopwatch);

}  // namespace trireme
