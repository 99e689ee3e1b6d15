// SPDX-License-Identifier: Apache-2.0
#include "tests/support/clusters.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/models.h"
#include "topology/topology.h"

namespace trireme {
namespace {

std::string data_file(const std::string& name) {
  return std::string(TRIREME_SOURCE_DIR) + "/tests/data/clusters/" + name + ".json";
}

PlacementOptions reference_options(const nlohmann::json& entry, bool llama) {
  PlacementOptions options;
  options.load = {entry["prompt"].get<int32_t>(), entry["output"].get<int32_t>()};
  options.tpot_limit_s = entry["tpot_limit_ms"].get<double>() / 1e3;
  options.tp_degrees = llama ? std::vector<int32_t>{1, 2, 4, 8} : std::vector<int32_t>{1, 2};
  options.batches = {1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256};
  options.limit_sequences = false;
  options.assumptions.detailed = false;
  options.assumptions.exact_bytes = false;
  options.assumptions.latency_kv_sequences = 4;
  options.assumptions.latency_head_share = 0.5;
  return options;
}

// A pipeline given layer by layer: its requests/s with the best batch, 0 if memory or limit forbid.
struct Fixed {
  std::vector<int> types;
  std::vector<int32_t> layers;
};

double rate_of(const SearchProblem& problem, const Fixed& fixed, bool one_at_a_time,
               double latency_s) {
  double best = 0;
  const size_t stages = fixed.types.size();
  for (size_t b = 0; b < problem.batches.size(); ++b) {
    const double batch = problem.batches[b];
    const double in_flight = batch * (one_at_a_time ? 1 : static_cast<double>(stages));
    double slowest = 0, sum = 0;
    bool fits = true;
    for (size_t k = 0; k < stages; ++k) {
      const StageType& type = problem.types[static_cast<size_t>(fixed.types[k])];
      const bool head = k + 1 == stages;
      const double bytes = fixed.layers[k] * (type.layer_bytes + in_flight * problem.kv_positions *
                                                                     type.kv_token_bytes) +
                           (head ? type.head_bytes : 0);
      fits = fits && bytes <= type.usable_bytes * (1 + 1e-12);
      const double seconds =
          fixed.layers[k] * type.request_s[b] + (head ? type.head_request_s[b] : 0);
      slowest = std::max(slowest, seconds);
      sum += seconds;
    }
    double tau = stages > 1 ? std::max(slowest, problem.hop_request_s[b]) : slowest;
    if (one_at_a_time) {
      // Nothing hides a hop: the share of its latency that others would hide is added.
      const double hop = problem.hop_request_s[b] + problem.output_tokens / batch * 0.7 * latency_s;
      tau = sum + (stages > 1 ? static_cast<double>(stages) * hop : 0);
    }
    const bool quick =
        in_flight * tau / problem.output_tokens <= problem.tpot_limit_s * (1 + 1e-12);
    if (fits && quick) best = std::max(best, 1 / tau);
  }
  return best;
}

double uniform(const PlannerInput& input, const std::vector<int>& groups, size_t pp) {
  const SearchProblem& problem = input.problem;
  std::map<std::vector<int>, double> known;
  double total = 0;
  for (size_t at = 0; at + pp <= groups.size(); at += pp) {
    Fixed fixed;
    fixed.types.assign(groups.begin() + static_cast<long>(at),
                       groups.begin() + static_cast<long>(at + pp));
    const auto [entry, fresh] = known.try_emplace(fixed.types, 0);
    if (fresh) {
      for (size_t k = 0; k < pp; ++k) {
        const auto extra = k < static_cast<size_t>(problem.layers) % pp ? 1 : 0;
        fixed.layers.push_back(problem.layers / static_cast<int32_t>(pp) + extra);
      }
      entry->second = rate_of(problem, fixed, false, 0);
    }
    total += entry->second;
  }
  return total;
}

double accelerate(const NamedCluster& cluster, const PlannerInput& input) {
  const SearchProblem& problem = input.problem;
  double best = 0;
  for (const bool balanced : {false, true}) {
    Fixed fixed;
    int32_t left = problem.layers;
    const int devices = cluster.devices();
    for (const IslandUse& island : input.islands) {
      const int single = problem.pools[static_cast<size_t>(island.pool)].types.front();
      const StageType& type = problem.types[static_cast<size_t>(single)];
      for (const int worker : island.workers) {
        double limit = type.usable_bytes;
        const bool last = worker + 1 == devices;
        if (balanced && !last) {
          limit = std::min(limit, type.layer_bytes * (double(problem.layers) / devices + 1.25));
        }
        const auto layers =
            std::min(left, static_cast<int32_t>(std::max(0.0, limit) / type.layer_bytes));
        if (layers < 1) continue;
        fixed.types.push_back(single);
        fixed.layers.push_back(layers);
        left -= layers;
      }
    }
    if (left > 0) continue;
    const double latency = cluster.topology.network(0).speed().latency_s();
    best = std::max(best, rate_of(problem, fixed, true, latency));
  }
  return best;
}

}  // namespace

std::vector<NamedCluster> named_clusters() {
  std::ifstream file(data_file("references"));
  std::vector<NamedCluster> clusters;
  for (const auto& entry : nlohmann::json::parse(file)) {
    NamedCluster cluster;
    cluster.name = entry["name"];
    cluster.topology = read_topology(data_file(cluster.name));
    const bool llama = entry["model"] == "llama3-70b";
    cluster.model = llama ? make_model(80, 64, 8, 128, 28672, 128256) : chatglm3();
    cluster.options = reference_options(entry, llama);
    cluster.requests_per_s = entry["requests_per_s"];
    cluster.bound = entry["bound"];
    cluster.ms_per_token = entry["ms_per_token"];
    cluster.best_uniform = entry["best_uniform"];
    cluster.rule = entry["rule"];
    cluster.accelerate = entry["accelerate"];
    clusters.push_back(std::move(cluster));
  }
  return clusters;
}

Baselines baselines(const NamedCluster& cluster) {
  const LinkGraph links(cluster.topology);
  const PlannerInput input =
      make_problem(cluster.topology, links, cluster.model, cluster.options, false);
  Baselines result;
  int32_t largest = 1;
  for (const IslandUse& island : input.islands) {
    largest = std::max(largest, static_cast<int32_t>(island.workers.size()));
  }
  int32_t rule_tp = 1;
  while (rule_tp * 2 <= std::min(8, largest)) rule_tp *= 2;
  for (const int32_t tp : cluster.options.tp_degrees) {
    std::vector<int> groups;
    for (const IslandUse& island : input.islands) {
      for (const int type : input.problem.pools[static_cast<size_t>(island.pool)].types) {
        if (input.problem.types[static_cast<size_t>(type)].tp == tp) {
          groups.insert(groups.end(), island.workers.size() / static_cast<size_t>(tp), type);
        }
      }
    }
    for (size_t pp = 1; pp <= std::min<size_t>(32, groups.size()); ++pp) {
      const double rate = uniform(input, groups, pp);
      result.best_uniform = std::max(result.best_uniform, rate);
      if (tp == rule_tp) result.rule = std::max(result.rule, rate);
    }
  }
  result.accelerate = accelerate(cluster, input);
  return result;
}

}  // namespace trireme
