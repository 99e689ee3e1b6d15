// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>

#include "topology/plan_search.h"

namespace trireme {
namespace {

// Groups of tp devices, island after island.
std::vector<int> groups_of(const PlannerInput& input, int32_t tp) {
  std::vector<int> groups;
  for (const IslandUse& island : input.islands) {
    for (const int type : input.problem.pools[static_cast<size_t>(island.pool)].types) {
      if (input.problem.types[static_cast<size_t>(type)].tp != tp) continue;
      groups.insert(groups.end(), island.workers.size() / static_cast<size_t>(tp), type);
    }
  }
  return groups;
}

UniformSetting evaluate(const PlannerInput& input, const std::vector<int>& groups, int32_t tp,
                        int32_t pp, bool latency) {
  const SearchProblem& problem = input.problem;
  UniformSetting setting;
  setting.tp = tp;
  setting.pp = pp;
  std::map<Counts, std::pair<std::optional<Replica>, int32_t>> replicas;
  int32_t made = 0;
  for (size_t at = 0; at + static_cast<size_t>(pp) <= groups.size();
       at += static_cast<size_t>(pp)) {
    Counts counts(problem.types.size(), 0);
    for (int32_t n = 0; n < pp; ++n)
      ++counts[static_cast<size_t>(groups[at + static_cast<size_t>(n)])];
    const auto [entry, fresh] = replicas.try_emplace(counts);
    if (fresh) {
      entry->second.first =
          latency ? quickest_replica(problem, counts) : best_replica(problem, counts);
    }
    if (!entry->second.first) continue;
    ++entry->second.second;
    if (++made == problem.fixed_replicas) break;
  }
  for (auto& [counts, entry] : replicas) {
    if (!entry.first) continue;
    if (latency) {
      const double seconds = entry.first->request_s;
      if (setting.result.replicas.empty() || seconds < setting.result.value) {
        setting.result.value = seconds;
        setting.result.replicas = {{*entry.first, 1}};
      }
    } else {
      setting.result.value += entry.second * entry.first->rate;
      setting.result.replicas.emplace_back(*entry.first, entry.second);
    }
  }
  if (made < problem.fixed_replicas) return {};
  return setting;
}

}  // namespace

UniformSetting best_uniform(const PlannerInput& input, const PlacementOptions& options,
                            const std::vector<std::pair<int32_t, int32_t>>& but) {
  const SearchProblem& problem = input.problem;
  const bool latency = options.objective == OBJECTIVE_LATENCY;
  std::vector<int32_t> degrees;
  for (const StageType& type : problem.types) degrees.push_back(type.tp);
  std::sort(degrees.begin(), degrees.end());
  degrees.erase(std::unique(degrees.begin(), degrees.end()), degrees.end());
  UniformSetting best;
  for (const int32_t tp : degrees) {
    const std::vector<int> groups = groups_of(input, tp);
    const auto most = static_cast<int32_t>(std::min<size_t>(groups.size(), 32));
    for (int32_t pp = 1; pp <= std::min(most, problem.layers); ++pp) {
      if (problem.fixed_stages > 0 && pp != problem.fixed_stages) continue;
      if (std::find(but.begin(), but.end(), std::pair(tp, pp)) != but.end()) continue;
      UniformSetting setting = evaluate(input, groups, tp, pp, latency);
      if (setting.result.replicas.empty()) continue;
      const bool better = latency ? setting.result.value < best.result.value
                                  : setting.result.value > best.result.value * (1 + 1e-9);
      if (best.result.replicas.empty() || better) best = std::move(setting);
    }
  }
  return best;
}

}  // namespace trireme
