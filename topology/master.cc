// SPDX-License-Identifier: Apache-2.0
#include <ClpSimplex.hpp>
#include <algorithm>
#include <cmath>

#include "topology/column_generation.h"

namespace trireme {
namespace {

// The dearest multiset of stages that an island of `devices` holds: a knapsack.
double best_cut(const SearchProblem& problem, const Pool& pool, int32_t devices,
                const Prices& prices, Counts* counts) {
  std::vector<double> best(static_cast<size_t>(devices) + 1, 0);
  std::vector<int> taken(static_cast<size_t>(devices) + 1, -1);
  for (int32_t n = 1; n <= devices; ++n) {
    const auto at = static_cast<size_t>(n);
    best[at] = best[at - 1];
    for (const int type : pool.types) {
      const int32_t tp = problem.types[static_cast<size_t>(type)].tp;
      if (tp > n) continue;
      const double with = best[static_cast<size_t>(n - tp)] + prices[static_cast<size_t>(type)];
      if (with > best[at]) {
        best[at] = with;
        taken[at] = type;
      }
    }
  }
  if (counts != nullptr) {
    for (int32_t n = devices; n > 0;) {
      const int type = taken[static_cast<size_t>(n)];
      if (type < 0) {
        --n;
        continue;
      }
      ++(*counts)[static_cast<size_t>(type)];
      n -= problem.types[static_cast<size_t>(type)].tp;
    }
  }
  return best[static_cast<size_t>(devices)];
}

}  // namespace

struct Master::Program {
  struct Row {
    size_t pool;
    int32_t devices;
    double islands;
  };

  const SearchProblem& problem;
  std::vector<Row> rows;     // after one for each stage type
  std::vector<int> columns;  // of replicas
  ClpSimplex simplex;

  Program(const SearchProblem& p, const Islands& islands) : problem(p) {
    for (size_t pool = 0; pool < islands.size(); ++pool) {
      for (const auto& [devices, count] : islands[pool]) {
        if (devices > 0 && count > 0) rows.push_back({pool, devices, double(count)});
      }
    }
    simplex.setLogLevel(0);
    const auto types = static_cast<int>(problem.types.size());
    simplex.resize(types + static_cast<int>(rows.size()), 0);
    for (int row = 0; row < simplex.numberRows(); ++row) {
      simplex.setRowBounds(row, -COIN_DBL_MAX,
                           row < types ? 0 : rows[static_cast<size_t>(row - types)].islands);
    }
    if (problem.fixed_replicas > 0) {
      const double n = problem.fixed_replicas;
      simplex.addRow(0, nullptr, nullptr, -COIN_DBL_MAX, n);
    }
    // Each type alone, so that every one can be had.
    for (size_t r = 0; r < rows.size(); ++r) {
      for (const int type : problem.pools[rows[r].pool].types) {
        const int32_t tp = problem.types[static_cast<size_t>(type)].tp;
        if (tp > rows[r].devices) continue;
        Counts counts(problem.types.size(), 0);
        counts[static_cast<size_t>(type)] = rows[r].devices / tp;
        add_cut(r, counts);
      }
    }
  }

  void add_cut(size_t row, const Counts& counts) {
    std::vector<int> index = {static_cast<int>(problem.types.size() + row)};
    std::vector<double> value = {1};
    for (size_t type = 0; type < counts.size(); ++type) {
      if (counts[type] == 0) continue;
      index.push_back(static_cast<int>(type));
      value.push_back(-counts[type]);
    }
    simplex.addColumn(static_cast<int>(index.size()), index.data(), value.data(), 0, COIN_DBL_MAX,
                      0);
  }

  Prices read_prices() const {
    Prices prices;
    for (size_t type = 0; type < problem.types.size(); ++type) {
      prices.push_back(std::max(0.0, -simplex.dualRowSolution()[type]));
    }
    return prices;
  }

  // Adds the cuts that would improve the program; false if none would.
  bool add_cuts(const Prices& prices) {
    bool added = false;
    for (size_t r = 0; r < rows.size(); ++r) {
      Counts counts(problem.types.size(), 0);
      const double worth =
          best_cut(problem, problem.pools[rows[r].pool], rows[r].devices, prices, &counts);
      const double price = -simplex.dualRowSolution()[problem.types.size() + r];
      if (worth <= price * (1 + 1e-9) + 1e-12) continue;
      add_cut(r, counts);
      added = true;
    }
    return added;
  }
};

Master::Master(const SearchProblem& problem, const Islands& islands)
    : program_(std::make_unique<Program>(problem, islands)) {}
Master::~Master() = default;

void Master::add(const Replica& replica) {
  std::vector<int> index;
  std::vector<double> value;
  for (size_t type = 0; type < replica.counts.size(); ++type) {
    if (replica.counts[type] == 0) continue;
    index.push_back(static_cast<int>(type));
    value.push_back(replica.counts[type]);
  }
  ClpSimplex& simplex = program_->simplex;
  if (program_->problem.fixed_replicas > 0) {
    index.push_back(simplex.numberRows() - 1);
    value.push_back(1);
  }
  program_->columns.push_back(simplex.numberColumns());
  simplex.addColumn(static_cast<int>(index.size()), index.data(), value.data(), 0, COIN_DBL_MAX,
                    -replica.rate);
}

double Master::solve(std::vector<double>& times, Prices& prices) {
  ClpSimplex& simplex = program_->simplex;
  for (int round = 0; round < 200; ++round) {
    simplex.primal(0);
    prices = program_->read_prices();
    if (!program_->add_cuts(prices)) break;
  }
  times.clear();
  for (const int column : program_->columns) {
    times.push_back(std::max(0.0, simplex.primalColumnSolution()[column]));
  }
  return -simplex.objectiveValue();
}

double Master::islands_worth(const Prices& prices) const {
  double worth = 0;
  for (const Program::Row& row : program_->rows) {
    worth += row.islands * best_cut(program_->problem, program_->problem.pools[row.pool],
                                    row.devices, prices, nullptr);
  }
  return worth;
}

Islands islands_of(const SearchProblem& problem) {
  Islands islands(problem.pools.size());
  for (size_t pool = 0; pool < problem.pools.size(); ++pool) {
    for (const auto& [devices, count] : problem.pools[pool].islands)
      islands[pool][devices] += count;
  }
  return islands;
}

bool take_from_pool(const SearchProblem& problem, size_t pool, const Counts& counts,
                    std::map<int32_t, int32_t>& free) {
  const std::vector<int>& types = problem.pools[pool].types;
  for (auto type = types.rbegin(); type != types.rend(); ++type) {
    const int32_t tp = problem.types[static_cast<size_t>(*type)].tp;
    for (int32_t n = counts[static_cast<size_t>(*type)]; n > 0;) {
      // The fullest: with the fewest free devices that are enough.
      const auto island = free.lower_bound(tp);
      if (island == free.end()) return false;
      const int32_t devices = island->first;
      // As many islands at once as take the same.
      const int32_t each = devices / tp;
      const int32_t whole = std::min(island->second, n / each);
      const int32_t used = std::max(1, whole);
      const int32_t stages = whole > 0 ? each : n;
      island->second -= used;
      if (island->second == 0) free.erase(island);
      const int32_t rest = devices - stages * tp;
      if (rest > 0) free[rest] += used;
      n -= stages * used;
    }
  }
  return true;
}

bool take_stages(const SearchProblem& problem, const Counts& counts, Islands& islands) {
  Islands left = islands;
  for (size_t pool = 0; pool < problem.pools.size(); ++pool) {
    if (!take_from_pool(problem, pool, counts, left[pool])) return false;
  }
  islands = std::move(left);
  return true;
}

}  // namespace trireme
