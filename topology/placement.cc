// SPDX-License-Identifier: Apache-2.0
#include "topology/placement.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "topology/assign.h"
#include "topology/by_memory.h"
#include "topology/memory.h"
#include "topology/plan_search.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

Degrees choose_degrees(int32_t workers, const ModelSpec& model, const PlacementOptions& options) {
  for (const auto& [name, value] :
       {std::pair{"--tp", options.tp}, {"--pp", options.pp}, {"--dp", options.dp}}) {
    if (value && *value < 1) {
      throw Error(Code::kInvalidArgument, std::string("cannot place the model: ") + name + " is " +
                                              std::to_string(*value) + ", needed is 1 or more");
    }
  }
  Degrees degrees{options.tp.value_or(1), options.pp.value_or(0), options.dp.value_or(1)};
  const int64_t fixed = int64_t{degrees.tp} * degrees.dp;
  if (degrees.pp == 0) {
    degrees.pp = static_cast<int32_t>(
        std::clamp<int64_t>(workers / std::max<int64_t>(fixed, 1), 1, model.num_layers()));
  }
  // Three degrees may be beyond 64 bits; nobody has as many workers as two may be.
  const int64_t needed = std::min<int64_t>(fixed, INT32_MAX) * degrees.pp;
  if (needed > workers) {
    throw Error(Code::kInvalidArgument,
                "cannot place the model: tp " + std::to_string(degrees.tp) + " x pp " +
                    std::to_string(degrees.pp) + " x dp " + std::to_string(degrees.dp) + " needs " +
                    std::to_string(needed) + " workers, the job has " + std::to_string(workers) +
                    "; start mpirun with -n " + std::to_string(needed + 1) + " or lower a degree");
  }
  if (degrees.pp > model.num_layers()) {
    throw Error(Code::kInvalidArgument, "cannot place the model: --pp " +
                                            std::to_string(degrees.pp) + " is more than its " +
                                            std::to_string(model.num_layers()) + " layers");
  }
  return degrees;
}

template <typename Visit>
void for_each_shard(Placement& placement, Visit visit) {
  for (ReplicaSpec& replica : *placement.mutable_replicas()) {
    for (StageSpec& stage : *replica.mutable_stages()) {
      for (ShardSpec& shard : *stage.mutable_shards()) visit(stage, shard);
    }
  }
}

// What the planned load fills, where memory was counted by formulas.
void blocks_of_load(const PlacementOptions& options, Placement& placement) {
  int64_t most = 1;
  for (const ReplicaSpec& replica : placement.replicas()) {
    const int64_t positions = int64_t{replica.micro_batches()} *
                              replica.sequences_per_micro_batch() *
                              (options.load.prompt_tokens + options.load.output_tokens);
    most = std::max(most, (positions + placement.block_size() - 1) / placement.block_size());
  }
  placement.set_num_blocks(
      static_cast<int32_t>(std::min<int64_t>(most, INT32_MAX / placement.block_size())));
}

// Nothing is known but the ranks.
bool bare(const Topology& topology) {
  return topology.islands().empty() && topology.network().empty() && topology.links().empty() &&
         std::none_of(topology.ranks().begin(), topology.ranks().end(), [](const RankInfo& rank) {
           return rank.device().speed_measured() || !rank.device().type().empty();
         });
}

void check_limits(const ModelSpec& model, const PlacementOptions& options) {
  check_context(model, options);
  for (const auto& [name, limit] :
       {std::pair{"--tpot_max", options.tpot_limit_s}, {"--ttft_max", options.ttft_limit_s}}) {
    if (limit && !(*limit > 0)) {
      throw Error(Code::kInvalidArgument,
                  std::string("cannot place the model: ") + name + " must be more than zero");
    }
  }
  if (options.load.prompt_tokens < 1 || options.load.output_tokens < 1) {
    throw Error(Code::kInvalidArgument,
                "cannot place the model: the load must have one prompt and one output token");
  }
}

// The load that is planned for fits the context.
void fit_load(const ModelSpec& model, PlacementOptions& options) {
  const int32_t context = options.context.value_or(model.context_length());
  Load& load = options.load;
  if (context > 1 && int64_t{load.prompt_tokens} + load.output_tokens > context) {
    load.output_tokens = std::clamp(context / 4, 1, load.output_tokens);
    load.prompt_tokens = std::clamp(context - load.output_tokens, 1, load.prompt_tokens);
  }
}

Placement to_placement(const Topology& topology, const ModelSpec& model, const PlannerInput& input,
                       const std::vector<PlacedReplica>& replicas) {
  Placement placement;
  for (const PlacedReplica& replica : replicas) {
    ReplicaSpec& spec = *placement.add_replicas();
    spec.set_micro_batches(replica.micro_batches);
    spec.set_sequences_per_micro_batch(input.problem.batches[static_cast<size_t>(replica.batch)]);
    int32_t begin = 0;
    for (size_t index = 0; index < replica.stages.size(); ++index) {
      const PlacedStage& placed = replica.stages[index];
      StageSpec& stage = *spec.add_stages();
      stage.mutable_layers()->set_begin(begin);
      stage.mutable_layers()->set_end(begin += placed.layers);
      stage.set_has_embedding(index == 0);
      stage.set_has_head(index + 1 == replica.stages.size());
      const auto tp = static_cast<int32_t>(placed.workers.size());
      for (int32_t tp_rank = 0; tp_rank < tp; ++tp_rank) {
        const int worker = placed.workers[static_cast<size_t>(tp_rank)];
        ShardSpec shard = make_shard(model, tp_rank, tp);
        shard.set_rank(topology.ranks(worker).rank());
        *stage.add_shards() = shard;
      }
    }
  }
  return placement;
}

void set_spares(const Topology& topology, Placement& placement) {
  std::set<int32_t> used;
  for_each_shard(placement,
                 [&](const StageSpec&, const ShardSpec& shard) { used.insert(shard.rank()); });
  for (const RankInfo& rank : topology.ranks()) {
    if (!used.count(rank.rank())) placement.add_spare_ranks(rank.rank());
  }
}

// No placement keeps memory and limits: says which, by what the same degrees need by memory alone.
Placement explain(const Topology& topology, const ModelSpec& model, const Degrees& degrees,
                  const PlacementOptions& options) {
  Placement placement = place_by_memory(topology, model, degrees, options);
  set_spares(topology, placement);
  set_limits(model, options, placement);
  size_kv_cache(topology, model, options, placement);
  predict_times(topology, model, options, placement);
  if (options.tpot_limit_s || options.ttft_limit_s) {
    char text[200];
    std::snprintf(
        text, sizeof text,
        ": TPOT %.1f ms and TTFT %.1f ms is what layers by memory reach; raise --tpot_max "
        "or --ttft_max, or add faster ranks",
        placement.predicted().tpot_ms(), placement.predicted().ttft_ms());
    throw Error(Code::kResourceExhausted,
                "cannot place " + model.name() + " within its limits on time" + text);
  }
  placement.mutable_predicted()->set_method("by memory");
  return placement;
}

// The plan on devices, with its predictions.
Placement place(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
                const PlacementOptions& options, const Plan& plan) {
  Placement placement = to_placement(topology, model, plan.input,
                                     assign_devices(plan.input, links, options, plan.result));
  set_spares(topology, placement);
  set_limits(model, options, placement);
  if (options.assumptions.exact_bytes) {
    size_kv_cache(topology, model, options, placement);
  } else {
    blocks_of_load(options, placement);
    predict_bytes(model, placement);
  }
  predict_times(topology, model, options, placement);
  return placement;
}

// Where links differ, a search that counts devices takes the best link for every hop; on devices
// the plan may need worse ones.
bool hops_bite(const Plan& plan, const PlacementOptions& options, const Placement& placement) {
  return options.objective != OBJECTIVE_LATENCY && !plan.input.uniform_links &&
         placement.predicted().requests_per_s() < 0.95 * plan.result.value;
}

// Asks the search again with slower and slower hops, which makes it prefer more and shorter
// replicas, and keeps the best of what comes of it on devices.
void try_slower_hops(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
                     const PlacementOptions& given, const Stopwatch& stopwatch,
                     Placement& placement) {
  constexpr double kStep = 2, kSlowest = 256;
  const double tpot =
      std::max(1e3 * given.tpot_limit_s.value_or(1e9), placement.predicted().tpot_ms());
  const double ttft =
      std::max(1e3 * given.ttft_limit_s.value_or(1e9), placement.predicted().ttft_ms());
  for (double factor = kStep; factor <= kSlowest && !stopwatch.over(); factor *= kStep) {
    PlacementOptions options = given;
    options.cpu_seconds =
        std::max(0.1 * given.cpu_seconds, given.cpu_seconds / 2 - stopwatch.elapsed_s());
    const Plan plan = search_plan(topology, links, model, options, factor);
    if (plan.result.replicas.empty()) return;
    try {
      Placement other = place(topology, links, model, options, plan);
      const PlacementPrediction& predicted = other.predicted();
      if (predicted.requests_per_s() > placement.predicted().requests_per_s() &&
          predicted.tpot_ms() <= tpot && predicted.ttft_ms() <= ttft) {
        placement = std::move(other);
      }
    } catch (const Error& error) {
      if (error.code() != Code::kResourceExhausted) throw;  // it fits the formulas only
    }
  }
}

}  // namespace

void predict_bytes(const ModelSpec& model, Placement& placement) {
  for_each_shard(placement, [&](const StageSpec& stage, ShardSpec& shard) {
    shard.set_weight_bytes(weight_bytes(model, stage, shard, placement));
    shard.set_kv_bytes(kv_bytes(model, stage, shard, placement));
    shard.set_activation_bytes(activation_bytes(model, stage, shard, placement));
  });
  for (ReplicaSpec& replica : *placement.mutable_replicas()) {
    for (int stage = 0; stage < replica.stages_size(); ++stage) {
      for (ShardSpec& shard : *replica.mutable_stages(stage)->mutable_shards()) {
        shard.set_communication_bytes(
            communication_bytes(model, replica, stage, shard.tp_rank(), placement));
      }
    }
  }
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    const int32_t own = placement.replicas(replica).num_blocks();
    if (own == 0) continue;
    placement.mutable_replicas(replica)->clear_num_blocks();
    // The others may have come to hold no more than this one.
    if (own < placement.num_blocks()) lower_num_blocks(placement, replica, own);
  }
}

std::vector<int> ranks_of(const ReplicaSpec& replica) {
  std::vector<int> ranks;
  for (const StageSpec& stage : replica.stages()) {
    for (const ShardSpec& shard : stage.shards()) ranks.push_back(shard.rank());
  }
  return ranks;
}

int32_t num_blocks_of(const Placement& placement, int replica) {
  const int32_t own = placement.replicas(replica).num_blocks();
  return own > 0 ? own : placement.num_blocks();
}

void lower_num_blocks(Placement& placement, int replica, int32_t num_blocks) {
  const int32_t before = num_blocks_of(placement, replica);
  CHECK(num_blocks > 0 && num_blocks <= before, "a replica's KV blocks only become fewer");
  ReplicaSpec& spec = *placement.mutable_replicas(replica);
  for (StageSpec& stage : *spec.mutable_stages()) {
    for (ShardSpec& shard : *stage.mutable_shards()) {
      const uint64_t block = shard.kv_bytes() / static_cast<uint64_t>(before);
      shard.set_kv_bytes(block * static_cast<uint64_t>(num_blocks));
    }
  }
  if (num_blocks < placement.num_blocks()) spec.set_num_blocks(num_blocks);
}

Placement plan_placement(const Topology& topology, const ModelSpec& model,
                         const PlacementOptions& given) {
  check_memory_keys(topology, given);
  check_limits(model, given);
  const Degrees degrees = choose_degrees(topology.ranks_size(), model, given);
  PlacementOptions options = given;
  fit_load(model, options);
  if (bare(topology)) {
    options.tp = degrees.tp;
    options.pp = degrees.pp;
    options.dp = degrees.dp;
  }
  const LinkGraph links(topology);
  const Stopwatch stopwatch(options.cpu_seconds / 2);
  const Plan plan = search_plan(topology, links, model, options);
  if (plan.result.replicas.empty()) return explain(topology, model, degrees, options);
  Placement placement = place(topology, links, model, options, plan);
  if (hops_bite(plan, options, placement)) {
    try_slower_hops(topology, links, model, options, stopwatch, placement);
  }
  explain_plan(topology, plan, options, placement);
  return placement;
}

}  // namespace trireme
