// SPDX-License-Identifier: Apache-2.0
#include "topology/placement.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

// Left for the program itself, its libraries and message buffers.
constexpr uint64_t kReservedBytes = 256u << 20;

struct Degrees {
  int32_t tp = 1, pp = 1, dp = 1;
};

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
  const int64_t needed = fixed * degrees.pp;
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

// What a worker may use: its memory, or less if --max_memory says so.
uint64_t memory_of(const Topology& topology, int worker, const PlacementOptions& options) {
  const RankInfo& rank = topology.ranks(worker);
  uint64_t bytes = rank.device().memory_bytes();
  for (const std::string& key :
       {std::string("cpu"), std::to_string(worker), rank.host() + ":" + std::to_string(worker)}) {
    if (key == "cpu" && rank.device().kind() != DEVICE_KIND_CPU) continue;
    const auto limit = options.max_memory_bytes.find(key);
    if (limit != options.max_memory_bytes.end()) bytes = std::min(bytes, limit->second);
  }
  return bytes;
}

void check_memory_keys(const Topology& topology, const PlacementOptions& options) {
  for (const auto& [key, bytes] : options.max_memory_bytes) {
    bool known = key == "cpu";
    for (int worker = 0; worker < topology.ranks_size(); ++worker) {
      known = known || key == std::to_string(worker) ||
              key == topology.ranks(worker).host() + ":" + std::to_string(worker);
    }
    if (!known) {
      throw Error(Code::kInvalidArgument,
                  "cannot use --max_memory: no worker is called " + key + "; the job has 0 to " +
                      std::to_string(topology.ranks_size() - 1) + ", host:index, or cpu");
    }
  }
}

// Ends of the stages' layer ranges. A decode step reads each layer once, and the head like
// head_weight layers: cut so that the cumulative work follows the cumulative memory.
std::vector<int32_t> cut_layers(int32_t num_layers, double head_weight,
                                const std::vector<double>& capacity) {
  double total_capacity = 0;
  for (const double value : capacity) total_capacity += value;
  const auto stages = static_cast<int32_t>(capacity.size());
  std::vector<int32_t> ends;
  double so_far = 0;
  for (int32_t stage = 0; stage < stages; ++stage) {
    so_far += capacity[static_cast<size_t>(stage)];
    const double target = (num_layers + head_weight) * so_far / std::max(total_capacity, 1.0);
    const int32_t least = (ends.empty() ? 0 : ends.back()) + 1;
    const int32_t most = num_layers - (stages - 1 - stage);
    ends.push_back(stage + 1 == stages
                       ? num_layers
                       : std::clamp(static_cast<int32_t>(std::lround(target)), least, most));
  }
  return ends;
}

ReplicaSpec make_replica(const Topology& topology, const ModelSpec& model, const Degrees& degrees,
                         int32_t first_worker, const PlacementOptions& options) {
  std::vector<double> capacity;
  for (int32_t stage = 0; stage < degrees.pp; ++stage) {
    uint64_t least = UINT64_MAX;
    for (int32_t j = 0; j < degrees.tp; ++j) {
      least = std::min(least, memory_of(topology, first_worker + stage * degrees.tp + j, options));
    }
    capacity.push_back(static_cast<double>(least) * degrees.tp);
  }
  const double hidden = model.hidden_size();
  const double layer_weights =
      hidden * (2.0 * model.num_heads() * model.head_dim() +
                2.0 * model.num_kv_heads() * model.head_dim() + 3.0 * model.ffn_size());
  const std::vector<int32_t> ends =
      cut_layers(model.num_layers(), hidden * model.vocab_size() / layer_weights, capacity);

  ReplicaSpec replica;
  int32_t begin = 0;
  for (int32_t index = 0; index < degrees.pp; ++index) {
    StageSpec& stage = *replica.add_stages();
    stage.mutable_layers()->set_begin(begin);
    stage.mutable_layers()->set_end(ends[static_cast<size_t>(index)]);
    begin = ends[static_cast<size_t>(index)];
    stage.set_has_embedding(index == 0);
    stage.set_has_head(index + 1 == degrees.pp);
    for (int32_t j = 0; j < degrees.tp; ++j) {
      ShardSpec shard = make_shard(model, j, degrees.tp);
      shard.set_rank(topology.ranks(first_worker + index * degrees.tp + j).rank());
      *stage.add_shards() = shard;
    }
  }
  return replica;
}

template <typename Visit>
void for_each_shard(Placement& placement, Visit visit) {
  for (ReplicaSpec& replica : *placement.mutable_replicas()) {
    for (StageSpec& stage : *replica.mutable_stages()) {
      for (ShardSpec& shard : *stage.mutable_shards()) visit(stage, shard);
    }
  }
}

int worker_of(const Topology& topology, int32_t rank) {
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    if (topology.ranks(worker).rank() == rank) return worker;
  }
  return -1;
}

// KV blocks that every rank has room for beside its weights and activations.
void choose_blocks(const Topology& topology, const ModelSpec& model,
                   const PlacementOptions& options, Placement& placement) {
  const auto blocks_of = [&](int64_t positions) {
    return (positions + placement.block_size() - 1) / placement.block_size();
  };
  const int64_t least = blocks_of(placement.context());
  int64_t blocks = least * placement.max_sequences();
  placement.set_num_blocks(1);
  predict_bytes(model, placement);
  for_each_shard(placement, [&](const StageSpec&, const ShardSpec& shard) {
    const int worker = worker_of(topology, shard.rank());
    const uint64_t memory = memory_of(topology, worker, options);
    const uint64_t fixed = shard.weight_bytes() + shard.activation_bytes() + kReservedBytes;
    const uint64_t needed = fixed + static_cast<uint64_t>(least) * shard.kv_bytes();
    if (needed > memory) {
      throw Error(Code::kResourceExhausted,
                  "cannot place " + model.name() + ": rank " + std::to_string(shard.rank()) + " (" +
                      topology.ranks(worker).host() + ") needs " + format_bytes(needed) +
                      " (weights " + format_bytes(shard.weight_bytes()) + ", one sequence of " +
                      std::to_string(placement.context()) + " positions " +
                      format_bytes(static_cast<uint64_t>(least) * shard.kv_bytes()) + "), it has " +
                      format_bytes(memory) +
                      "; add ranks, or lower --context, --max_batch_tokens or --dtype");
    }
    if (shard.kv_bytes() > 0) {
      blocks = std::min(blocks, static_cast<int64_t>((memory - fixed) / shard.kv_bytes()));
    }
  });
  placement.set_num_blocks(
      static_cast<int32_t>(std::min<int64_t>(blocks, INT32_MAX / placement.block_size())));
}

}  // namespace

void predict_bytes(const ModelSpec& model, Placement& placement) {
  for_each_shard(placement, [&](const StageSpec& stage, ShardSpec& shard) {
    shard.set_weight_bytes(weight_bytes(model, stage, shard, placement));
    shard.set_kv_bytes(kv_bytes(model, stage, shard, placement));
    shard.set_activation_bytes(activation_bytes(model, stage, shard, placement));
  });
}

Placement plan_placement(const Topology& topology, const ModelSpec& model,
                         const PlacementOptions& options) {
  check_memory_keys(topology, options);
  if (options.context && (*options.context < 1 || *options.context > model.context_length())) {
    throw Error(Code::kInvalidArgument, "cannot place the model: --context is " +
                                            std::to_string(*options.context) + ", " + model.name() +
                                            " was made for 1 to " +
                                            std::to_string(model.context_length()) + " positions");
  }
  const Degrees degrees = choose_degrees(topology.ranks_size(), model, options);
  Placement placement;
  for (int32_t index = 0; index < degrees.dp; ++index) {
    *placement.add_replicas() =
        make_replica(topology, model, degrees, index * degrees.pp * degrees.tp, options);
  }
  for (int worker = degrees.dp * degrees.pp * degrees.tp; worker < topology.ranks_size();
       ++worker) {
    placement.add_spare_ranks(topology.ranks(worker).rank());
  }
  placement.set_dtype(dtype_name(options.dtype));
  if (options.weight_dtypes) *placement.mutable_weight_dtypes() = *options.weight_dtypes;
  placement.set_block_size(options.block_size);
  placement.set_max_sequences(options.max_sequences);
  placement.set_max_batch_tokens(options.max_batch_tokens);
  placement.set_context(options.context.value_or(model.context_length()));
  choose_blocks(topology, model, options, placement);
  predict_bytes(model, placement);
  return placement;
}

namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& found) {
  throw Error(Code::kInvalidArgument, "cannot use the placement: " + where + " " + found);
}

// The shards of a stage must cover [0, limit) of one dimension, in order, without a gap.
void check_cover(const StageSpec& stage, const std::string& where, const char* field,
                 const Range& (ShardSpec::*range)() const, int32_t limit) {
  int32_t at = 0;
  for (const ShardSpec& shard : stage.shards()) {
    if ((shard.*range)().begin() != at) {
      refuse(where, std::string(field) + " of rank " + std::to_string(shard.rank()) + " begin at " +
                        std::to_string((shard.*range)().begin()) + ", needed is " +
                        std::to_string(at));
    }
    at = (shard.*range)().end();
  }
  if (at != limit) {
    refuse(where, std::string(field) + " end at " + std::to_string(at) + ", the model has " +
                      std::to_string(limit));
  }
}

void check_stage(const Topology* topology, const ModelSpec& model, const StageSpec& stage,
                 const std::string& where, std::set<int32_t>& used) {
  if (stage.shards().empty()) refuse(where, "has no shard");
  int32_t tp_rank = 0;
  for (const ShardSpec& shard : stage.shards()) {
    if (topology != nullptr && worker_of(*topology, shard.rank()) < 0) {
      refuse(where, "names rank " + std::to_string(shard.rank()) + ", which is no worker");
    }
    if (!used.insert(shard.rank()).second) {
      refuse(where, "uses rank " + std::to_string(shard.rank()) + " a second time");
    }
    if (shard.tp_rank() != tp_rank++) refuse(where, "does not list its shards by tp_rank");
    validate_shard(model, shard);
  }
  check_cover(stage, where, "heads", &ShardSpec::heads, model.num_heads());
  check_cover(stage, where, "ffn", &ShardSpec::ffn, model.ffn_size());
  check_cover(stage, where, "vocab", &ShardSpec::vocab, model.vocab_size());
}

void check_replica(const Topology* topology, const ModelSpec& model, const ReplicaSpec& replica,
                   const std::string& where, std::set<int32_t>& used) {
  if (replica.stages().empty()) refuse(where, "has no stage");
  int32_t layer = 0;
  for (int index = 0; index < replica.stages_size(); ++index) {
    const StageSpec& stage = replica.stages(index);
    const std::string stage_where = where + ", stage " + std::to_string(index);
    if (stage.layers().begin() != layer || stage.layers().end() < layer ||
        stage.layers().end() > model.num_layers()) {
      refuse(stage_where, "has layers [" + std::to_string(stage.layers().begin()) + ", " +
                              std::to_string(stage.layers().end()) + "), needed is a range from " +
                              std::to_string(layer) + " within " +
                              std::to_string(model.num_layers()));
    }
    layer = stage.layers().end();
    if (stage.has_embedding() != (index == 0)) {
      refuse(stage_where, "is wrong about has_embedding: the first stage has it");
    }
    if (stage.has_head() != (index + 1 == replica.stages_size())) {
      refuse(stage_where, "is wrong about has_head: the last stage has it");
    }
    check_stage(topology, model, stage, stage_where, used);
  }
  if (layer != model.num_layers()) {
    refuse(where, "ends at layer " + std::to_string(layer) + ", the model has " +
                      std::to_string(model.num_layers()));
  }
}

void check_placement(const Topology* topology, const ModelSpec& model, const Placement& placement) {
  if (placement.replicas().empty()) refuse("it", "has no replica");
  validate_dtypes(model, placement);
  const auto positive = [](const char* field, int32_t value, int32_t most) {
    if (value < 1 || value > most) {
      refuse(field, "is " + std::to_string(value) + ", needed is 1 to " + std::to_string(most));
    }
  };
  positive("block_size", placement.block_size(), 1 << 12);
  positive("num_blocks", placement.num_blocks(), INT32_MAX / placement.block_size());
  positive("max_sequences", placement.max_sequences(), 1 << 16);
  positive("max_batch_tokens", placement.max_batch_tokens(), 1 << 20);
  positive("context", placement.context(), model.context_length());
  std::set<int32_t> used;
  for (int index = 0; index < placement.replicas_size(); ++index) {
    check_replica(topology, model, placement.replicas(index), "replica " + std::to_string(index),
                  used);
  }
}

}  // namespace

void validate_placement(const Topology& topology, const ModelSpec& model,
                        const Placement& placement) {
  check_placement(&topology, model, placement);
}

void validate_placement(const ModelSpec& model, const Placement& placement) {
  check_placement(nullptr, model, placement);
}

void check_memory(const Topology& topology, const Placement& placement) {
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const StageSpec& stage : replica.stages()) {
      for (const ShardSpec& shard : stage.shards()) {
        const RankInfo& rank = topology.ranks(worker_of(topology, shard.rank()));
        const uint64_t needed =
            shard.weight_bytes() + shard.kv_bytes() + shard.activation_bytes() + kReservedBytes;
        if (needed <= rank.device().memory_bytes()) continue;
        throw Error(Code::kResourceExhausted,
                    "cannot use the placement: rank " + std::to_string(shard.rank()) + " (" +
                        rank.host() + ") needs " + format_bytes(needed) + " (weights " +
                        format_bytes(shard.weight_bytes()) + ", KV " +
                        format_bytes(shard.kv_bytes()) + "), it has " +
                        format_bytes(rank.device().memory_bytes()) +
                        "; add ranks, or lower num_blocks or max_batch_tokens");
      }
    }
  }
}

}  // namespace trireme
