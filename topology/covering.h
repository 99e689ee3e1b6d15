// SPDX-License-Identifier: Apache-2.0
// The cheapest stages that hold a model's layers within a time: what pricing asks again and again.
#pragma once

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "topology/column_generation.h"

namespace trireme {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// One way to run replicas: a batch and a number of stages, which is that of micro-batches too.
struct Mode {
  size_t batch = 0;
  int32_t stages = 1;
  double least = 0, most = 0;                // seconds per request
  std::vector<int32_t> memory, memory_head;  // layers, by type
};

// Free devices of a pool, and those that whole groups of so many can use.
struct PoolDevices {
  int32_t all = 0;
  std::map<size_t, size_t> of_groups;
};

// The layers of a stage within tau seconds per request.
inline int32_t time_layers(double tau, double head_s, double layer_s) {
  const double layers = (tau - head_s) / layer_s * (1 + 1e-12);
  return layers < 1 ? 0 : static_cast<int32_t>(std::min(layers, 1e6));
}

// The cheapest stages that hold the layers within a time.
class Covering {
 public:
  Covering(const SearchProblem& problem, const std::vector<int32_t>& available,
           const Prices& prices)
      : problem_(problem), available_(available), prices_(prices) {}

  // A lower bound of cost() in no time: layers could be cut, and the head weighs nothing.
  double least_cost(const Mode& mode, double tau) const {
    double per_layer = kInfinite;
    for (size_t t = 0; t < problem_.types.size(); ++t) {
      const int32_t time = time_layers(tau, 0, problem_.types[t].request_s[mode.batch]);
      const int32_t cap = std::min({time, mode.memory[t], problem_.layers});
      if (cap > 0) per_layer = std::min(per_layer, prices_[t] / cap);
    }
    return per_layer * problem_.layers;
  }

  // The inner stages by dynamic programming over the layers that they hold; how many there are of a
  // type is not asked, so that the cost is a lower bound where there are few.
  double solve(const Mode& mode, double tau, Counts* counts) {
    const auto layers = static_cast<size_t>(problem_.layers);
    items_.clear();
    for (size_t t = 0; t < problem_.types.size(); ++t) {
      const int32_t time = time_layers(tau, 0, problem_.types[t].request_s[mode.batch]);
      const int32_t cap = std::min({time, mode.memory[t], problem_.layers});
      if (cap > 0) items_.push_back({static_cast<int>(t), cap, prices_[t]});
    }
    drop_dominated();
    double best = kInfinite;
    int best_last = -1;
    size_t best_left = 0;
    // Without a limit on their number first: often it is kept.
    if (!unlimited(layers)) return kInfinite;
    const bool limited = stages_needed(layers) + 1 > mode.stages;
    if (limited) limit(layers, static_cast<size_t>(mode.stages) - 1);
    for (size_t t = 0; t < problem_.types.size(); ++t) {
      const StageType& type = problem_.types[t];
      const int32_t time =
          time_layers(tau, type.head_request_s[mode.batch], type.request_s[mode.batch]);
      const int32_t cap = std::min({time, mode.memory_head[t], problem_.layers});
      if (cap < 1) continue;
      const size_t left = layers - static_cast<size_t>(cap);
      const double inner =
          limited ? limited_[static_cast<size_t>(mode.stages) - 1][left] : unlimited_[left];
      if (inner + prices_[t] < best) {
        best = inner + prices_[t];
        best_last = static_cast<int>(t);
        best_left = left;
      }
    }
    if (counts != nullptr && best_last >= 0) {
      ++(*counts)[static_cast<size_t>(best_last)];
      size_t k = static_cast<size_t>(mode.stages) - 1;
      for (size_t n = best_left; n > 0;) {
        const int item = limited ? limited_taken_[k][n] : taken_[n];
        if (item < 0) break;
        const Item& chosen = items_[static_cast<size_t>(item)];
        ++(*counts)[static_cast<size_t>(chosen.type)];
        n -= std::min(n, static_cast<size_t>(chosen.cap));
        if (limited) --k;
      }
    }
    return best;
  }

 private:
  struct Item {
    int type;
    int32_t cap;
    double price;
  };

  // Of two that hold the same, the dearer one; unless the cheaper one may run out.
  void drop_dominated() {
    std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
      return std::pair(a.price, -a.cap) < std::pair(b.price, -b.cap);
    });
    std::vector<Item> kept;
    int32_t most = 0;
    for (const Item& item : items_) {
      if (item.cap <= most) continue;
      kept.push_back(item);
      const int64_t all = int64_t{available_[static_cast<size_t>(item.type)]} * item.cap;
      if (all >= problem_.layers) most = item.cap;
    }
    items_ = std::move(kept);
  }

  bool unlimited(size_t layers) {
    unlimited_.assign(layers + 1, kInfinite);
    taken_.assign(layers + 1, -1);
    number_.assign(layers + 1, 0);
    unlimited_[0] = 0;
    for (size_t n = 1; n <= layers; ++n) {
      for (size_t i = 0; i < items_.size(); ++i) {
        const size_t rest = n - std::min(n, static_cast<size_t>(items_[i].cap));
        const double with = unlimited_[rest] + items_[i].price;
        if (with < unlimited_[n]) {
          unlimited_[n] = with;
          taken_[n] = static_cast<int>(i);
          number_[n] = number_[rest] + 1;
        }
      }
    }
    return !items_.empty();
  }

  int32_t stages_needed(size_t layers) const { return number_[layers]; }

  void limit(size_t layers, size_t stages) {
    limited_.resize(std::max(limited_.size(), stages + 1));
    limited_taken_.resize(limited_.size());
    for (size_t k = 0; k <= stages; ++k) {
      limited_[k].assign(layers + 1, kInfinite);
      limited_taken_[k].assign(layers + 1, -1);
      limited_[k][0] = 0;
      for (size_t n = 1; k > 0 && n <= layers; ++n) {
        for (size_t i = 0; i < items_.size(); ++i) {
          const size_t rest = n - std::min(n, static_cast<size_t>(items_[i].cap));
          const double with = limited_[k - 1][rest] + items_[i].price;
          if (with < limited_[k][n]) {
            limited_[k][n] = with;
            limited_taken_[k][n] = static_cast<int>(i);
          }
        }
      }
    }
  }

  const SearchProblem& problem_;
  const std::vector<int32_t>& available_;
  const Prices& prices_;
  std::vector<Item> items_;
  std::vector<double> unlimited_;
  std::vector<int> taken_, number_;
  std::vector<std::vector<double>> limited_;
  std::vector<std::vector<int>> limited_taken_;
};

}  // namespace trireme
