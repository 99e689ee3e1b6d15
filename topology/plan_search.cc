// SPDX-License-Identifier: Apache-2.0
#include "topology/plan_search.h"

#include <algorithm>
#include <cmath>

#include "topology/column_generation.h"
#include "topology/regions.h"

namespace trireme {
namespace {

// Of few devices the optimum is worth waiting for; of many, column generation is as good sooner.
constexpr int32_t kFewDevices = 24;
constexpr size_t kVectorsOfFew = 400'000;
constexpr size_t kVectorsOfMany = 30'000;
constexpr int32_t kListableDevices = 96;  // more are not tried to list
constexpr size_t kVectorsOfIslands = 20'000;
constexpr double kVectorS = 50e-6;  // that one of them takes

int32_t devices_of(const SearchProblem& problem) {
  int32_t devices = 0;
  for (const Pool& pool : problem.pools) devices += pool.devices();
  return devices;
}

// Hops between every two pools of an input in which each island is one: the worst of any two of
// their devices.
void fill_pool_hops(const LinkGraph& links, const PlacementOptions& options, PlannerInput& input) {
  SearchProblem& problem = input.problem;
  const size_t pools = problem.pools.size();
  const double row = input.model.hidden * options.assumptions.hop_element_bytes;
  problem.pool_hop_token_s.assign(pools, std::vector<double>(pools, 0));
  problem.pool_hop_request_s.assign(problem.batches.size(), problem.pool_hop_token_s);
  for (const IslandUse& a : input.islands) {
    for (const IslandUse& b : input.islands) {
      for (const int i : a.workers) {
        for (const int j : b.workers) {
          if (i == j) continue;
          const LinkSpeed& link = links.between(i, j);
          const auto x = static_cast<size_t>(a.pool), y = static_cast<size_t>(b.pool);
          const auto most = [](double& value, double other) { value = std::max(value, other); };
          most(problem.pool_hop_token_s[x][y],
               hop_s(link.latency_s(), link.bandwidth_bytes_per_s(), row));
          for (size_t n = 0; n < problem.batches.size(); ++n) {
            most(problem.pool_hop_request_s[n][x][y],
                 request_hop_s(link, options, row, problem.batches[n]));
          }
        }
      }
    }
  }
}

void set_degrees(const PlacementOptions& options, SearchProblem& problem) {
  problem.fixed_stages = options.pp.value_or(0);
  problem.fixed_replicas = options.dp.value_or(0);
  if (options.pp) problem.max_stages = problem.layers;
  // One stream alone: one replica.
  if (options.objective == OBJECTIVE_LATENCY) problem.fixed_replicas = 0;
}

// With single devices of more pools than can be listed, the quickest replica is sought among equal
// degrees; no layer can be faster than the fastest.
SearchResult quickest_uniform(const PlannerInput& input, const PlacementOptions& options) {
  SearchResult result = best_uniform(input, options).result;
  double layer = std::numeric_limits<double>::infinity(), head = layer;
  for (const StageType& type : input.problem.types) {
    layer = std::min(layer, type.decode_s[0]);
    head = std::min(head, type.head_step_s[0]);
  }
  result.bound = input.problem.layers * layer + head;
  return result;
}

bool better(const PlacementOptions& options, const SearchResult& a, const SearchResult& b) {
  if (b.replicas.empty() || a.replicas.empty()) return b.replicas.empty() && !a.replicas.empty();
  return options.objective == OBJECTIVE_LATENCY ? a.value < b.value : a.value > b.value;
}

SearchResult search_problem(const PlannerInput& input, const PlacementOptions& options,
                            std::string& method) {
  const SearchProblem& problem = input.problem;
  const Stopwatch stopwatch(options.cpu_seconds);
  const bool latency = options.objective == OBJECTIVE_LATENCY;
  const int32_t devices = devices_of(problem);
  std::optional<CountVectors> vectors;
  if (devices <= kListableDevices) {
    vectors = CountVectors::make(problem, devices <= kFewDevices ? kVectorsOfFew : kVectorsOfMany);
  }
  if (vectors) {
    method = "exact";
    return latency ? exact_latency(problem, *vectors) : exact_throughput(problem, *vectors);
  }
  if (latency) {
    method = "equal degrees";
    return quickest_uniform(input, options);
  }
  method = "column generation";
  SearchResult uniform = best_uniform(input, options).result;
  std::vector<Replica> known;
  for (const auto& [replica, times] : uniform.replicas) known.push_back(replica);
  SearchResult result = generate_columns(problem, known, stopwatch);
  if (problem.fixed_replicas > 0) {
    int32_t replicas = 0;
    for (const auto& [replica, times] : result.replicas) replicas += times;
    if (replicas != problem.fixed_replicas) result.replicas.clear();
  }
  if (!better(options, result, uniform)) {
    uniform.bound = std::max(result.bound, uniform.value);
    result = std::move(uniform);
  }
  return result;
}

// Searches with the devices of each region counted apart, in the finest division that can be
// listed; false if there is none.
bool divide(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
            const PlacementOptions& options, double hop_factor, Plan& plan) {
  if (devices_of(plan.input.problem) > kListableDevices) return false;
  const auto most =
      std::min(kVectorsOfIslands, static_cast<size_t>(options.cpu_seconds / kVectorS));
  for (const Regions& regions : find_regions(topology, links, options, plan.input.model)) {
    PlannerInput divided = make_problem(topology, links, model, options, false, regions);
    if (!CountVectors::make(divided.problem, most)) continue;
    set_degrees(options, divided.problem);
    fill_region_hops(links, options, regions, divided);
    for (std::vector<double>& by_batch : divided.problem.region_hop_request_s) {
      for (double& seconds : by_batch) seconds *= hop_factor;
    }
    plan.input = std::move(divided);
    plan.result = search_problem(plan.input, options, plan.method);
    return true;
  }
  return false;
}

}  // namespace

Plan search_plan(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
                 const PlacementOptions& given, double hop_factor) {
  PlacementOptions options = given;
  if (options.objective == OBJECTIVE_LATENCY) options.batches = {1};
  Plan plan;
  plan.input = make_problem(topology, links, model, options, false);
  // Where hops differ and islands are few, each is itself.
  if (!plan.input.uniform_links && plan.input.islands.size() <= 12 &&
      devices_of(plan.input.problem) <= kFewDevices) {
    PlannerInput identified = make_problem(topology, links, model, options, true);
    set_degrees(options, identified.problem);
    fill_pool_hops(links, options, identified);
    if (CountVectors::make(identified.problem, kVectorsOfIslands)) {
      plan.input = std::move(identified);
      plan.method = "exact";
      plan.result = search_problem(plan.input, options, plan.method);
      return plan;
    }
  }
  if (!plan.input.uniform_links && divide(topology, links, model, options, hop_factor, plan)) {
    return plan;
  }
  set_degrees(options, plan.input.problem);
  for (double& seconds : plan.input.problem.hop_request_s) seconds *= hop_factor;
  plan.result = search_problem(plan.input, options, plan.method);
  return plan;
}

}  // namespace trireme
