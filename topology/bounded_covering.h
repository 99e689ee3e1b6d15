// SPDX-License-Identifier: Apache-2.0
// The cheapest stages where devices are few.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "topology/covering.h"

namespace trireme {

// As Covering, where some pools have too few devices for the cheapest cover: theirs are counted,
// and the head is one of the stages.
class BoundedCovering {
 public:
  BoundedCovering(const SearchProblem& problem, const std::vector<PoolDevices>& devices,
                  const Prices& prices)
      : problem_(problem), devices_(devices), prices_(prices) {}

  // `counted`: the pools whose devices are; of the others there are enough.
  double solve(const Mode& mode, double tau, bool count_stages, const std::vector<bool>& counted,
               Counts& counts) {
    counted_ = counted;
    layers_ = static_cast<size_t>(problem_.layers);
    stages_ = count_stages ? static_cast<size_t>(mode.stages) : 0;
    const size_t states = 2 * (stages_ + 1) * (layers_ + 1);
    std::vector<double> now(states, kInfinite);
    now[state(0, 0, layers_)] = 0;  // layers left
    steps_.clear();
    now = add_plenty(mode, tau, now);
    for (size_t pool = 0; pool < problem_.pools.size(); ++pool) {
      if (devices_[pool].all > 0 && counted_[pool]) now = add_pool(mode, tau, pool, now);
    }
    size_t best = 0;
    for (size_t k = 0; k <= stages_; ++k) {
      if (now[state(1, k, 0)] < now[state(1, best, 0)]) best = k;
    }
    const double cost = now[state(1, best, 0)];
    if (cost < kInfinite && !trace(1, best, counts)) std::fill(counts.begin(), counts.end(), 0);
    return cost;
  }

 private:
  struct Item {
    int type;
    size_t tp;
    int32_t cap, cap_head;
  };
  static constexpr size_t kLost = SIZE_MAX - 1;

  struct Step {
    std::vector<Item> items;
    std::vector<uint16_t> devices;  // by state: of the pool, used in the best way to it
    std::vector<double> cost;       // by devices and state; by state alone if they are plenty,
    std::vector<double> before;     // and then what it was
  };

  size_t state(size_t head, size_t k, size_t n) const {
    return (head * (stages_ + 1) + k) * (layers_ + 1) + n;
  }

  void add_items(const Mode& mode, double tau, size_t pool, std::vector<Item>& items) const {
    for (const int type : problem_.pools[pool].types) {
      const auto t = static_cast<size_t>(type);
      const double layer = problem_.types[t].request_s[mode.batch];
      Item item{type, static_cast<size_t>(problem_.types[t].tp), 0, 0};
      item.cap = std::min({time_layers(tau, 0, layer), mode.memory[t], problem_.layers});
      item.cap_head =
          std::min({time_layers(tau, problem_.types[t].head_request_s[mode.batch], layer),
                    mode.memory_head[t], problem_.layers});
      if (item.cap > 0) items.push_back(item);
    }
  }

  // All pools with devices enough, at once: of their items only those that no other one beats.
  std::vector<double> add_plenty(const Mode& mode, double tau, const std::vector<double>& before) {
    std::vector<Item> all;
    for (size_t pool = 0; pool < problem_.pools.size(); ++pool) {
      if (devices_[pool].all > 0 && !counted_[pool]) add_items(mode, tau, pool, all);
    }
    const auto price = [&](const Item& item) { return prices_[static_cast<size_t>(item.type)]; };
    std::sort(all.begin(), all.end(), [&](const Item& a, const Item& b) {
      return std::tuple(price(a), -a.cap, -a.cap_head, a.type) <
             std::tuple(price(b), -b.cap, -b.cap_head, b.type);
    });
    Step step;
    for (const Item& item : all) {
      const bool beaten = std::any_of(step.items.begin(), step.items.end(), [&](const Item& other) {
        return other.cap >= item.cap && other.cap_head >= item.cap_head;
      });
      if (!beaten) step.items.push_back(item);
    }
    step.before = before;
    step.cost = before;
    for (size_t k = 0; k <= stages_; ++k) {
      for (size_t n = layers_ + 1; n-- > 0;) add_uncounted(step, k, n);
    }
    steps_.push_back(std::move(step));
    return steps_.back().cost;
  }

  std::vector<double> add_pool(const Mode& mode, double tau, size_t pool,
                               const std::vector<double>& before) {
    const size_t states = before.size();
    Step step;
    add_items(mode, tau, pool, step.items);
    const auto most = static_cast<size_t>(devices_[pool].all);
    step.cost.assign((most + 1) * states, kInfinite);
    std::copy(before.begin(), before.end(), step.cost.begin());
    // Larger groups first: those of s devices or more have no more than whole groups of s in every
    // island, which for powers of two is all that there is to ask.
    for (auto item = step.items.rbegin(); item != step.items.rend(); ++item) {
      const size_t room = devices_[pool].of_groups.at(item->tp);
      for (size_t d = item->tp; d <= room; ++d) {
        relax(*item, &step.cost[(d - item->tp) * states], &step.cost[d * states]);
      }
    }
    std::vector<double> after(states, kInfinite);
    step.devices.assign(states, 0);
    for (size_t d = 0; d <= most; ++d) {
      for (size_t s = 0; s < states; ++s) {
        if (step.cost[d * states + s] < after[s]) {
          after[s] = step.cost[d * states + s];
          step.devices[s] = static_cast<uint16_t>(d);
        }
      }
    }
    steps_.push_back(std::move(step));
    return after;
  }

  // Adds one more stage of each item to the states with n layers left and k stages, where devices
  // are plenty.
  void add_uncounted(Step& step, size_t k, size_t n) const {
    const size_t next = k + (stages_ > 0 ? 1 : 0);
    if (next > stages_) return;
    if (step.cost[state(0, k, n)] == kInfinite && step.cost[state(1, k, n)] == kInfinite) return;
    for (const Item& item : step.items) {
      const double price = prices_[static_cast<size_t>(item.type)];
      const auto visit = [&](size_t head, size_t new_head, int32_t layers) {
        const size_t left = n - std::min(n, static_cast<size_t>(layers));
        double& target = step.cost[state(new_head, next, left)];
        target = std::min(target, step.cost[state(head, k, n)] + price);
      };
      if (n > 0) visit(0, 0, item.cap);
      if (n > 0) visit(1, 1, item.cap);
      if (item.cap_head > 0) visit(0, 1, item.cap_head);
    }
  }

  // Adds one stage of an item to every state with d - tp devices used. Where the costs came from is
  // found again by trace(): this loop is most of the time.
  void relax(const Item& item, const double* from, double* to) const {
    const double price = prices_[static_cast<size_t>(item.type)];
    const size_t count = stages_ > 0 ? 1 : 0;
    const auto visit = [&](size_t head, size_t new_head, int32_t layers) {
      const auto cap = static_cast<size_t>(layers);
      for (size_t k = 0; k + count <= stages_; ++k) {
        const double* source = from + state(head, k, 0);
        double* target = to + state(new_head, k + count, 0);
        for (size_t n = new_head > head ? 0 : 1; n < cap; ++n)
          target[0] = std::min(target[0], source[n] + price);
        const size_t rest = layers_ + 1 - cap;
        for (size_t n = 0; n < rest; ++n) target[n] = std::min(target[n], source[n + cap] + price);
      }
    };
    visit(0, 0, item.cap);
    visit(1, 1, item.cap);
    if (item.cap_head > 0) visit(0, 1, item.cap_head);
  }

  // Backwards through the pools, from the state of 0 layers left with the head.
  // False if costs of other covers hide the way.
  bool trace(size_t head, size_t k, Counts& counts) const {
    const size_t states = 2 * (stages_ + 1) * (layers_ + 1);
    size_t n = 0;
    for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
      if (!step->before.empty()) {
        while (step->cost[state(head, k, n)] != step->before[state(head, k, n)]) {
          if (back(*step, step->cost[state(head, k, n)], SIZE_MAX, head, k, n, counts) == kLost) {
            return false;
          }
        }
        continue;
      }
      for (size_t d = step->devices[state(head, k, n)]; d > 0;) {
        const double cost = step->cost[d * states + state(head, k, n)];
        d = back(*step, cost, d, head, k, n, counts);
        if (d == kLost) return false;
      }
    }
    return true;
  }

  // One stage back: the devices left; head, k and n become those before it. `d` is SIZE_MAX where
  // they are not counted.
  size_t back(const Step& step, double cost, size_t d, size_t& head, size_t& k, size_t& n,
              Counts& counts) const {
    const size_t states = 2 * (stages_ + 1) * (layers_ + 1);
    const size_t count = stages_ > 0 ? 1 : 0;
    for (const Item& item : step.items) {
      const double price = prices_[static_cast<size_t>(item.type)];
      if (item.tp > d || k < count) continue;
      for (size_t before = 0; before <= head; ++before) {
        const int32_t layers = before == head ? item.cap : item.cap_head;
        if (layers <= 0) continue;
        const auto cap = static_cast<size_t>(layers);
        // Without layers left after it, it may hold fewer than it could; none only as the head.
        const size_t first = n > 0 ? n + cap : before == head ? 1 : 0;
        const size_t layer = d == SIZE_MAX ? 0 : (d - item.tp) * states;
        for (size_t m = first; m <= std::min(n + cap, layers_); ++m) {
          if (step.cost[layer + state(before, k - count, m)] + price != cost) continue;
          ++counts[static_cast<size_t>(item.type)];
          head = before;
          k -= count;
          n = m;
          return d == SIZE_MAX ? 0 : d - item.tp;
        }
      }
    }
    return kLost;
  }

  const SearchProblem& problem_;
  const std::vector<PoolDevices>& devices_;
  const Prices& prices_;
  size_t layers_ = 0, stages_ = 0;
  std::vector<bool> counted_;
  std::vector<Step> steps_;
};

}  // namespace trireme
