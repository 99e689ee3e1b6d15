// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

#include "topology/search.h"

namespace trireme {
namespace {

constexpr size_t kExact = 10;
constexpr double kInfinite = std::numeric_limits<double>::infinity();

double join(double a, double b, bool sum) { return sum ? a + b : std::max(a, b); }

double cost_of(const std::vector<std::vector<double>>& hop, const std::vector<int>& order,
               bool sum) {
  double cost = 0;
  for (size_t i = 0; i + 1 < order.size(); ++i) {
    cost = join(cost, hop[static_cast<size_t>(order[i])][static_cast<size_t>(order[i + 1])], sum);
  }
  return cost;
}

// Held and Karp: best[set][last] over the inner stages.
StageOrder exact_order(const std::vector<std::vector<double>>& hop, bool sum) {
  const size_t inner = hop.size() - 2;
  const size_t sets = size_t{1} << inner;
  std::vector<double> best(sets * inner, kInfinite);
  std::vector<int> before(sets * inner, -1);
  for (size_t i = 0; i < inner; ++i) best[(size_t{1} << i) * inner + i] = hop[0][i + 1];
  for (size_t set = 1; set < sets; ++set) {
    for (size_t last = 0; last < inner; ++last) {
      const double cost = best[set * inner + last];
      if (cost == kInfinite) continue;
      for (size_t next = 0; next < inner; ++next) {
        if (set >> next & 1) continue;
        const size_t to = (set | size_t{1} << next) * inner + next;
        const double with = join(cost, hop[last + 1][next + 1], sum);
        if (with < best[to]) {
          best[to] = with;
          before[to] = static_cast<int>(last);
        }
      }
    }
  }
  StageOrder result;
  result.cost = kInfinite;
  size_t last = 0;
  for (size_t i = 0; i < inner; ++i) {
    const double cost = join(best[(sets - 1) * inner + i], hop[i + 1][inner + 1], sum);
    if (cost < result.cost) {
      result.cost = cost;
      last = i;
    }
  }
  result.order = {static_cast<int>(inner + 1)};
  for (size_t set = sets - 1; set != 0;) {
    result.order.push_back(static_cast<int>(last + 1));
    const int previous = before[set * inner + last];
    set &= ~(size_t{1} << last);
    last = static_cast<size_t>(std::max(previous, 0));
  }
  result.order.push_back(0);
  std::reverse(result.order.begin(), result.order.end());
  return result;
}

StageOrder improved_order(const std::vector<std::vector<double>>& hop, bool sum) {
  StageOrder result;
  std::vector<int> left(hop.size() - 2);
  std::iota(left.begin(), left.end(), 1);
  result.order = {0};
  while (!left.empty()) {
    const auto& row = hop[static_cast<size_t>(result.order.back())];
    const auto nearest = std::min_element(left.begin(), left.end(), [&](int a, int b) {
      return row[static_cast<size_t>(a)] < row[static_cast<size_t>(b)];
    });
    result.order.push_back(*nearest);
    left.erase(nearest);
  }
  result.order.push_back(static_cast<int>(hop.size()) - 1);
  result.cost = cost_of(hop, result.order, sum);
  for (bool better = true; better;) {
    better = false;
    for (size_t i = 1; i + 2 < result.order.size(); ++i) {
      for (size_t j = i + 1; j + 1 < result.order.size(); ++j) {
        std::vector<int> other = result.order;
        std::reverse(other.begin() + static_cast<long>(i),
                     other.begin() + static_cast<long>(j) + 1);
        const double cost = cost_of(hop, other, sum);
        if (cost < result.cost * (1 - 1e-12)) {
          result = {cost, std::move(other)};
          better = true;
        }
      }
    }
  }
  return result;
}

}  // namespace

StageOrder order_stages(const std::vector<std::vector<double>>& hop, bool sum) {
  StageOrder given;
  given.order.resize(hop.size());
  std::iota(given.order.begin(), given.order.end(), 0);
  given.cost = cost_of(hop, given.order, sum);
  if (hop.size() <= 3) return given;
  double least = kInfinite;
  for (size_t i = 0; i < hop.size(); ++i) {
    for (size_t j = 0; j < hop.size(); ++j) {
      if (i != j) least = std::min(least, hop[i][j]);
    }
  }
  // As good as can be already: so it is with equal links.
  if (given.cost <= (sum ? least * static_cast<double>(hop.size() - 1) : least)) return given;
  StageOrder found = hop.size() <= kExact ? exact_order(hop, sum) : improved_order(hop, sum);
  return found.cost < given.cost ? found : given;
}

}  // namespace trireme
