// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "topology/column_generation.h"

namespace trireme {
namespace {

constexpr size_t kMostVectors = 20'000;
constexpr int32_t kMostDevices = 40;  // to list more takes longer than it gains

// A placement that grows and shrinks by whole replicas of known shapes.
class Rounding {
 public:
  Rounding(const SearchProblem& problem, const Islands& islands, std::vector<Replica> shapes)
      : problem_(&problem),
        all_(islands),
        shapes_(std::move(shapes)),
        times_(shapes_.size(), 0),
        counts_(problem.types.size(), 0) {}

  double value() const { return value_; }
  int32_t replicas() const { return std::accumulate(times_.begin(), times_.end(), 0); }
  const std::vector<int32_t>& times() const { return times_; }
  const std::vector<Replica>& shapes() const { return shapes_; }

  // What is free beside the replicas.
  bool left(Islands& islands) const {
    islands = all_;
    return take_stages(*problem_, counts_, islands);
  }

  // False, and nothing happens, if they do not fit.
  bool change(size_t shape, int32_t by) {
    if (by > 0 && problem_->fixed_replicas > 0 && replicas() + by > problem_->fixed_replicas) {
      return false;
    }
    Counts counts = counts_;
    for (size_t t = 0; t < counts.size(); ++t) counts[t] += by * shapes_[shape].counts[t];
    Islands islands = all_;
    if (by > 0 && !take_stages(*problem_, counts, islands)) return false;
    counts_ = std::move(counts);
    times_[shape] += by;
    value_ += by * shapes_[shape].rate;
    return true;
  }

  size_t shape_of(const Replica& replica) {
    for (size_t i = 0; i < shapes_.size(); ++i) {
      if (shapes_[i].counts == replica.counts) return i;
    }
    shapes_.push_back(replica);
    times_.push_back(0);
    return shapes_.size() - 1;
  }

 private:
  const SearchProblem* problem_;
  Islands all_;
  std::vector<Replica> shapes_;
  std::vector<int32_t> times_;
  Counts counts_;
  double value_ = 0;
};

SearchProblem with_islands(const SearchProblem& problem, const Islands& islands) {
  SearchProblem part = problem;
  for (size_t pool = 0; pool < islands.size(); ++pool) {
    part.pools[pool].islands.assign(islands[pool].begin(), islands[pool].end());
  }
  return part;
}

// The best use of what is left, exactly, if that is little.
bool fill_exactly(const SearchProblem& problem, Rounding& rounding) {
  Islands left;
  if (!rounding.left(left) || problem.fixed_replicas > 0) return false;
  int32_t devices = 0;
  for (const auto& pool : left) {
    for (const auto& [size, count] : pool) devices += size * count;
  }
  if (devices > kMostDevices) return false;
  const SearchProblem rest = with_islands(problem, left);
  const auto vectors = CountVectors::make(rest, kMostVectors);
  if (!vectors) return false;
  for (const auto& [replica, times] : exact_throughput(rest, *vectors).replicas) {
    rounding.change(rounding.shape_of(replica), times);
  }
  return true;
}

// Adds whole replicas of known shapes while they fit, those first that earn most for a device.
void fill_greedily(Rounding& rounding, const std::vector<size_t>& order) {
  for (const size_t shape : order) {
    while (rounding.change(shape, 1)) {
    }
  }
}

// Rounds the largest fraction up, solves the program for what is left, and so on.
void dive(const SearchProblem& problem, std::vector<double> times, Rounding& rounding,
          const Stopwatch& stopwatch) {
  while (!stopwatch.over()) {
    bool fitted = false;
    std::vector<size_t> order;
    for (size_t shape = 0; shape < times.size(); ++shape) {
      const auto whole = static_cast<int32_t>(times[shape] + 1e-6);
      if (whole > 0 && rounding.change(shape, whole)) fitted = true;
      if (times[shape] - whole > 1e-6) order.push_back(shape);
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return times[a] - std::floor(times[a] + 1e-6) > times[b] - std::floor(times[b] + 1e-6);
    });
    for (size_t i = 0; i < order.size() && !fitted; ++i) fitted = rounding.change(order[i], 1);
    if (!fitted) return;
    Islands left;
    if (!rounding.left(left)) return;
    Master master(problem, left);
    // Only what still fits whole.
    std::vector<size_t> shapes;
    for (size_t shape = 0; shape < times.size(); ++shape) {
      Islands islands = left;
      if (!take_stages(problem, rounding.shapes()[shape].counts, islands)) continue;
      master.add(rounding.shapes()[shape]);
      shapes.push_back(shape);
    }
    if (shapes.empty()) return;
    std::vector<double> part;
    Prices prices;
    master.solve(part, prices);
    std::fill(times.begin(), times.end(), 0);
    for (size_t i = 0; i < shapes.size(); ++i) times[shapes[i]] = part[i];
  }
}

// Takes a few replicas away, those that earn least for their devices more often, and fills the room
// exactly; keeps what is better.
void improve(const SearchProblem& problem, Rounding& rounding, const Stopwatch& stopwatch) {
  uint64_t random = 0x9e3779b97f4a7c15;
  const auto draw = [&](size_t below) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<size_t>(random % below);
  };
  for (int round = 0, failures = 0; round < 400 && failures < 60 && !stopwatch.over(); ++round) {
    std::vector<size_t> present;
    for (size_t shape = 0; shape < rounding.times().size(); ++shape) {
      for (int32_t n = 0; n < std::min(rounding.times()[shape], 3); ++n) present.push_back(shape);
    }
    if (present.empty()) return;
    Rounding other = rounding;
    const size_t remove = 1 + draw(3);
    for (size_t n = 0; n < remove && !present.empty(); ++n) {
      const size_t at = draw(present.size());
      other.change(present[at], -1);
      present.erase(present.begin() + static_cast<long>(at));
    }
    if (fill_exactly(problem, other) && other.value() > rounding.value() * (1 + 1e-9)) {
      rounding = std::move(other);
      failures = 0;
    } else {
      ++failures;
    }
  }
}

}  // namespace

SearchResult round_columns(const SearchProblem& problem, const Islands& islands,
                           const std::vector<Replica>& columns, const std::vector<double>& times,
                           const Stopwatch& stopwatch) {
  Rounding rounding(problem, islands, columns);
  dive(problem, times, rounding, stopwatch);
  std::vector<size_t> order(columns.size());
  std::iota(order.begin(), order.end(), 0);
  const auto worth = [&](size_t shape) {
    double devices = 0;
    for (size_t t = 0; t < problem.types.size(); ++t) {
      devices += columns[shape].counts[t] * problem.types[t].tp;
    }
    return columns[shape].rate / devices;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return worth(a) > worth(b); });
  if (!fill_exactly(problem, rounding)) fill_greedily(rounding, order);
  improve(problem, rounding, stopwatch);
  SearchResult result;
  result.value = rounding.value();
  for (size_t shape = 0; shape < rounding.shapes().size(); ++shape) {
    if (rounding.times()[shape] > 0) {
      result.replicas.emplace_back(rounding.shapes()[shape], rounding.times()[shape]);
    }
  }
  return result;
}

}  // namespace trireme
