// SPDX-License-Identifier: Apache-2.0
#include "topology/by_memory.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "topology/shard.h"
#include "topology/stage_types.h"

namespace trireme {
namespace {

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

}  // namespace

Placement place_by_memory(const Topology& topology, const ModelSpec& model, const Degrees& degrees,
                          const PlacementOptions& options) {
  Placement placement;
  for (int32_t index = 0; index < degrees.dp; ++index) {
    *placement.add_replicas() =
        make_replica(topology, model, degrees, index * degrees.pp * degrees.tp, options);
  }
  return placement;
}

}  // namespace trireme
