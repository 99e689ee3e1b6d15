// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "launch/job.h"
#include "launch/text_table.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

std::string range_text(const Range& range) {
  return std::to_string(range.begin()) + "-" + std::to_string(range.end() - 1);
}

}  // namespace

std::string placement_table(const Topology& topology, const ModelSpec& model,
                            const Placement& placement) {
  std::vector<TextRow> rows = {{"replica", "stage", "rank", "host", "device", "layers", "heads",
                                "ffn", "weights", "kv cache", "activations"}};
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    const auto& stages = placement.replicas(replica).stages();
    for (int stage = 0; stage < stages.size(); ++stage) {
      for (const ShardSpec& shard : stages[stage].shards()) {
        const auto rank = std::find_if(topology.ranks().begin(), topology.ranks().end(),
                                       [&](const RankInfo& r) { return r.rank() == shard.rank(); });
        const bool found = rank != topology.ranks().end();
        std::string layers = range_text(stages[stage].layers());
        if (stages[stage].has_embedding()) layers = "embedding " + layers;
        if (stages[stage].has_head()) layers += " head";
        rows.push_back(
            {std::to_string(replica), std::to_string(stage), std::to_string(shard.rank()),
             found ? rank->host() : "?", found ? device_label(rank->device()) : "?", layers,
             range_text(shard.heads()), range_text(shard.ffn()), format_bytes(shard.weight_bytes()),
             format_bytes(shard.kv_bytes()), format_bytes(shard.activation_bytes())});
      }
    }
  }
  std::string text = model.name() + ": " + model.family() + ", " +
                     std::to_string(model.num_layers()) + " layers, " + dtype_summary(placement) +
                     ", context " + std::to_string(placement.context()) + ", " +
                     std::to_string(placement.max_sequences()) + " sequences, " +
                     std::to_string(placement.num_blocks()) + " KV blocks of " +
                     std::to_string(placement.block_size()) + "\n" + draw_table(rows);
  for (const int32_t rank : placement.spare_ranks()) {
    text += "  rank " + std::to_string(rank) + " is spare\n";
  }
  return text;
}

}  // namespace trireme
