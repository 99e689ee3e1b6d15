// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <queue>

#include "topology/bounded_covering.h"
#include "topology/column_generation.h"
#include "topology/covering.h"

namespace trireme {
namespace {

constexpr int32_t kMostStages = 32;
constexpr int32_t kFewStages = 8;
constexpr double kFirstStep = 1.35;  // between the times that are looked at first

}  // namespace

struct Pricing::Table {
  std::vector<Mode> modes;
  std::vector<int32_t> available;  // stages of each type alone
  Islands islands;
  std::vector<PoolDevices> devices;  // of each pool
};

Pricing::Pricing(const SearchProblem& problem, const Islands& islands)
    : problem_(problem), table_(std::make_unique<Table>()) {
  table_->islands = islands;
  for (size_t pool = 0; pool < islands.size(); ++pool) {
    PoolDevices devices;
    for (const auto& [size, count] : islands[pool]) {
      devices.all += size * count;
      for (const int type : problem.pools[pool].types) {
        const int32_t tp = problem.types[static_cast<size_t>(type)].tp;
        devices.of_groups[static_cast<size_t>(tp)] += static_cast<size_t>(size / tp * tp * count);
      }
    }
    table_->devices.push_back(std::move(devices));
  }
  for (const StageType& type : problem.types) {
    int32_t stages = 0;
    for (const auto& [devices, count] : islands[static_cast<size_t>(type.pool)]) {
      stages += devices / type.tp * count;
    }
    table_->available.push_back(stages);
  }
  const int32_t most_stages = std::min({problem.max_stages, problem.layers, kMostStages});
  for (size_t b = 0; b < problem.batches.size(); ++b) {
    for (int32_t stages = 1; stages <= most_stages; ++stages) {
      if (problem.fixed_stages > 0 && stages != problem.fixed_stages) continue;
      const double sequences = double(stages) * problem.batches[b];
      if (sequences > problem.max_sequences) break;
      Mode mode;
      mode.batch = b;
      mode.stages = stages;
      mode.most = problem.tpot_limit_s * problem.output_tokens / sequences;
      const double kv = std::max(sequences * problem.kv_positions, problem.least_kv_positions);
      double slowest = 0, fastest = kInfinite, head = 0;
      int64_t room = 0;
      for (size_t t = 0; t < problem.types.size(); ++t) {
        const StageType& type = problem.types[t];
        mode.memory.push_back(table_->available[t] > 0 ? memory_layers(type, kv, 0) : 0);
        mode.memory_head.push_back(
            table_->available[t] > 0 ? memory_layers(type, kv, type.head_bytes) : 0);
        if (mode.memory.back() == 0) continue;
        room = std::max<int64_t>(room, mode.memory.back());
        slowest = std::max(slowest, type.request_s[b]);
        fastest = std::min(fastest, type.request_s[b]);
        head = std::max(head, type.head_request_s[b]);
      }
      if (room * stages < problem.layers) continue;
      mode.least = std::max(stages > 1 ? problem.hop_request_s[b] : 0,
                            std::ceil(double(problem.layers) / stages) * fastest * 0.999);
      mode.most = std::min(mode.most, problem.layers * slowest + head);
      if (mode.least <= mode.most) table_->modes.push_back(std::move(mode));
    }
  }
}

Pricing::~Pricing() = default;

namespace {

// How well a span's worth is known.
enum class Known : uint8_t { kRoughly, kUnbounded, kBounded };

// Times between `least` and `most` of one mode: no replica of them is worth more than `worth`.
struct Span {
  double worth;
  size_t mode;
  double least, most;
  Known known;
  std::vector<bool> counted;  // pools, if kBounded
  Counts counts;              // of the cheapest cover, if known
  bool operator<(const Span& other) const { return worth < other.worth; }
};

double cost_of(const Counts& counts, const Prices& prices) {
  double cost = 0;
  for (size_t t = 0; t < counts.size(); ++t) cost += counts[t] * prices[t];
  return std::max(cost, 1e-300);
}

// Whether the islands hold these stages. Adds the pools that do not to `counted`.
bool fits(const SearchProblem& problem, const Islands& islands, const Counts& counts,
          std::vector<bool>& counted) {
  bool all = true;
  for (size_t pool = 0; pool < problem.pools.size(); ++pool) {
    auto free = islands[pool];
    if (take_from_pool(problem, pool, counts, free)) continue;
    all = false;
    counted.resize(problem.pools.size(), false);
    counted[pool] = true;
  }
  return all;
}

// Best first, each shape once.
std::vector<Replica> best_of(std::vector<std::pair<double, Replica>> found) {
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<Replica> best;
  for (auto& [worth, replica] : found) {
    const Counts& counts = replica.counts;
    const bool again =
        std::any_of(best.begin(), best.end(), [&](const Replica& r) { return r.counts == counts; });
    if (!again) best.push_back(std::move(replica));
    if (best.size() >= 24) break;
  }
  return best;
}

}  // namespace

Priced Pricing::price(const Prices& prices, double tolerance, bool plenty,
                      const Stopwatch& stopwatch) const {
  Covering covering(problem_, table_->available, prices);
  BoundedCovering bounded(problem_, table_->devices, prices);
  std::priority_queue<Span> spans;
  const auto push = [&](size_t mode, double least, double most, Known known, double at_most,
                        const std::vector<bool>& counted = {}) {
    const Mode& m = table_->modes[mode];
    Span span{0, mode, least, most, known, counted, Counts(problem_.types.size(), 0)};
    double cost = 0;
    switch (known) {
      case Known::kRoughly: cost = covering.least_cost(m, most); break;
      case Known::kUnbounded: cost = covering.solve(m, most, &span.counts); break;
      case Known::kBounded:
        // Counting the stages as well costs more, the more there may be: only if they are too many.
        cost = bounded.solve(m, most, false, counted, span.counts);
        if (m.stages <= kFewStages &&
            std::accumulate(span.counts.begin(), span.counts.end(), 0) > m.stages) {
          std::fill(span.counts.begin(), span.counts.end(), 0);
          cost = bounded.solve(m, most, true, counted, span.counts);
        }
        break;
    }
    if (cost == kInfinite) return;
    span.worth = std::min(at_most, 1 / (least * std::max(cost, 1e-300)));
    spans.push(std::move(span));
  };
  for (size_t mode = 0; mode < table_->modes.size(); ++mode) {
    const Mode& m = table_->modes[mode];
    for (double least = m.least; least < m.most; least *= kFirstStep) {
      push(mode, least, std::min(m.most, least * kFirstStep), Known::kRoughly, kInfinite);
    }
  }
  double worth_at_most = 0, best = 0;
  std::vector<std::pair<double, Replica>> found;
  while (!spans.empty()) {
    const Span span = spans.top();
    if (span.worth <= best * (1 + tolerance) || stopwatch.over()) {
      worth_at_most = span.worth;
      break;
    }
    spans.pop();
    if (span.known == Known::kRoughly) {
      push(span.mode, span.least, span.most, Known::kUnbounded, span.worth);
      continue;
    }
    std::vector<bool> counted = span.counted;
    const bool there = plenty || fits(problem_, table_->islands, span.counts, counted);
    if (counted != span.counted) {
      push(span.mode, span.least, span.most, Known::kBounded, span.worth, counted);
      continue;
    }
    if (auto replica = there ? best_replica(problem_, span.counts) : std::nullopt) {
      const double worth = replica->rate / cost_of(span.counts, prices);
      best = std::max(best, worth);
      found.emplace_back(worth, std::move(*replica));
    }
    if (span.most / span.least < 1 + tolerance / 4) {
      // Narrow enough: what it may be worth counts as found.
      best = std::max(best, span.worth / (1 + tolerance));
      continue;
    }
    const double middle = std::sqrt(span.least * span.most);
    push(span.mode, span.least, middle, Known::kRoughly, span.worth);
    push(span.mode, middle, span.most, Known::kRoughly, span.worth);
  }
  return {std::max(worth_at_most, best * (1 + tolerance)), best_of(std::move(found))};
}

}  // namespace trireme
