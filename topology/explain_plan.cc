// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>

#include "topology/plan_search.h"
#include "topology/shard.h"

namespace trireme {
namespace {

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
  char buffer[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

// "2 x (TP4 TP4)"; equal neighbours as "TP2 x PP4".
std::string shape_of(const ReplicaSpec& replica) {
  std::string shape;
  for (int i = 0; i < replica.stages_size();) {
    int end = i;
    const int tp = replica.stages(i).shards_size();
    while (end < replica.stages_size() && replica.stages(end).shards_size() == tp) ++end;
    if (!shape.empty()) shape += ", ";
    shape += "TP" + std::to_string(tp) + " x PP" + std::to_string(end - i);
    i = end;
  }
  return shape;
}

std::string shape_of(const Placement& placement) {
  std::map<std::string, int> shapes;
  for (const ReplicaSpec& replica : placement.replicas()) ++shapes[shape_of(replica)];
  std::string all;
  for (const auto& [shape, times] : shapes) {
    all += (all.empty() ? "" : " + ") + std::to_string(times) + " x (" + shape + ")";
  }
  return all;
}

// What a decode step of these stages consists of.
struct Shares {
  double all_reduce = 0, hops = 0, sequences = 0;
};

Shares shares_of(const PlannerInput& input, const UniformSetting& setting) {
  Shares shares;
  double steps = 0;
  for (const auto& [replica, times] : setting.result.replicas) {
    const int32_t batch = input.problem.batches[static_cast<size_t>(replica.batch)];
    shares.sequences += times * double(batch) * replica.micro_batches;
    for (const StageLayers& stage : replica.stages) {
      const StageType& type = input.problem.types[static_cast<size_t>(stage.type)];
      const auto b = static_cast<size_t>(replica.batch);
      steps += times * stage.layers * type.decode_s[b];
      shares.all_reduce += times * stage.layers * type.all_reduce_step_s[b];
    }
    if (replica.stages.size() > 1) {
      shares.hops =
          std::max(shares.hops, input.problem.hop_request_s[static_cast<size_t>(replica.batch)] /
                                    replica.request_s);
    }
  }
  if (steps > 0) shares.all_reduce /= steps;
  return shares;
}

std::string why_lost(const PlannerInput& input, const UniformSetting& setting, double chosen,
                     double chosen_sequences, bool latency) {
  const Shares shares = shares_of(input, setting);
  const double value = setting.result.value;
  std::string reason =
      latency ? text("a token takes %.2f ms instead of %.2f", 1e3 * value, 1e3 * chosen)
              : text("%.4g requests/s instead of %.4g", value, chosen);
  if (shares.all_reduce > 0.15) {
    reason += text("; all-reduces are %.0f %% of its decode step", 100 * shares.all_reduce);
  } else if (!latency && shares.sequences < 0.8 * chosen_sequences) {
    reason += text("; its memory holds %.0f sequences at once, not %.0f", shares.sequences,
                   chosen_sequences);
  } else if (shares.hops > 0.9) {
    reason += "; its hops are busier than its stages";
  } else {
    reason += "; equal degrees leave stages waiting for the slowest, or devices idle";
  }
  return reason;
}

void set_runner_up(const Plan& plan, const PlacementOptions& options, Placement& placement) {
  const bool latency = options.objective == OBJECTIVE_LATENCY;
  // The chosen degrees, if they are equal everywhere, are no runner-up.
  std::vector<std::pair<int32_t, int32_t>> but;
  const ReplicaSpec& first = placement.replicas(0);
  const bool equal =
      std::all_of(placement.replicas().begin(), placement.replicas().end(),
                  [&](const ReplicaSpec& replica) { return shape_of(replica) == shape_of(first); });
  if (equal && shape_of(first).find(',') == std::string::npos) {
    but.emplace_back(first.stages(0).shards_size(), first.stages_size());
  }
  const UniformSetting other = best_uniform(plan.input, options, but);
  RunnerUp& runner_up = *placement.mutable_predicted()->mutable_runner_up();
  if (other.result.replicas.empty()) {
    runner_up.set_reason("no other setting of equal degrees keeps memory and limits");
    return;
  }
  int32_t replicas = 0;
  for (const auto& [replica, times] : other.result.replicas) replicas += times;
  runner_up.set_shape(std::to_string(replicas) + " x (TP" + std::to_string(other.tp) + " x PP" +
                      std::to_string(other.pp) + ")");
  runner_up.set_value(latency ? 1e3 * other.result.value : other.result.value);
  double sequences = 0;
  for (const ReplicaSpec& replica : placement.replicas()) {
    sequences += double(replica.micro_batches()) * replica.sequences_per_micro_batch();
  }
  runner_up.set_reason(why_lost(plan.input, other, plan.result.value, sequences, latency));
}

std::string rank_list(const StageSpec& stage) {
  std::string ranks = std::to_string(stage.shards(0).rank());
  if (stage.shards_size() > 1) ranks += "-" + std::to_string(stage.shards().rbegin()->rank());
  return (stage.shards_size() > 1 ? "ranks " : "rank ") + ranks;
}

// The replica that paces the others: its slowest stage, its bubble, its all-reduces.
void add_stage_reasons(Placement& placement) {
  const auto slowest = std::max_element(placement.replicas().begin(), placement.replicas().end(),
                                        [](const auto& a, const auto& b) {
                                          return a.predicted().tpot_ms() < b.predicted().tpot_ms();
                                        });
  const auto pace = std::max_element(slowest->stages().begin(), slowest->stages().end(),
                                     [](const auto& a, const auto& b) {
                                       return a.predicted().decode_ms() < b.predicted().decode_ms();
                                     });
  auto& reasons = *placement.mutable_predicted()->mutable_reasons();
  if (slowest->stages_size() > 1) {
    reasons.Add(text("stage %d (%s) sets the pace: %.2f ms for a micro-batch of %d",
                     int(pace - slowest->stages().begin()), rank_list(*pace).c_str(),
                     pace->predicted().decode_ms(), slowest->sequences_per_micro_batch()));
    double least = 1e300, most = 0;
    for (const StageSpec& stage : slowest->stages()) {
      least = std::min(least, double(length(stage.layers())));
      most = std::max(most, double(length(stage.layers())));
    }
    if (most > least) {
      reasons.Add(
          text("stages have %.0f to %.0f layers: by the speed and memory of their devices, "
               "and the head counts as %.1f layers",
               least, most,
               slowest->stages().rbegin()->predicted().head_ms() /
                   std::max(1e-9, (slowest->stages().rbegin()->predicted().decode_ms() -
                                   slowest->stages().rbegin()->predicted().head_ms()) /
                                      length(slowest->stages().rbegin()->layers()))));
    }
  }
  const StagePrediction& first = pace->predicted();
  if (first.all_reduce_ms() > 0) {
    reasons.Add(text("TP%d: all-reduces are %.0f %% of the step of %s", pace->shards_size(),
                     100 * first.all_reduce_ms() / first.decode_ms(), rank_list(*pace).c_str()));
  }
}

}  // namespace

void explain_plan(const Topology& topology, const Plan& plan, const PlacementOptions& options,
                  Placement& placement) {
  PlacementPrediction& predicted = *placement.mutable_predicted();
  const bool latency = options.objective == OBJECTIVE_LATENCY;
  predicted.set_method(plan.method);
  // The objective as it was searched; links that the search took for better ones than they are
  // count.
  double value = plan.result.value;
  if (!latency && !plan.input.uniform_links) value = std::min(value, predicted.requests_per_s());
  predicted.set_value(latency ? 1e3 * value : value);
  predicted.set_bound(latency ? 1e3 * plan.result.bound : plan.result.bound);
  predicted.set_gap(std::max(0.0, latency ? value / plan.result.bound - 1
                                          : plan.result.bound / std::max(value, 1e-300) - 1));
  if (predicted.gap() < 1e-9) predicted.set_gap(0);
  set_runner_up(plan, options, placement);
  predicted.add_reasons("chosen: " + shape_of(placement));
  add_stage_reasons(placement);
  for (const RankInfo& rank : topology.ranks()) {
    if (!rank.device().degraded()) continue;
    predicted.add_reasons("rank " + std::to_string(rank.rank()) + " is degraded (" +
                          rank.device().degraded_reason() + "): a class of its own");
  }
  const int spares = placement.spare_ranks_size();
  if (spares > 0) {
    predicted.add_reasons(text(
        "%d rank%s left out, rank %d first: no placement that the search knows is faster with %s",
        spares, spares > 1 ? "s are" : " is", placement.spare_ranks(0),
        spares > 1 ? "them" : "it"));
  }
}

}  // namespace trireme
