// SPDX-License-Identifier: Apache-2.0
#include "launch/placement_table.h"

#include <vector>

#include "launch/picture_parts.h"
#include "launch/text_table.h"
#include "topology/shard.h"
#include "topology/topology.h"
#include "topology/worker_names.h"

namespace trireme {
namespace {

std::string range_text(const Range& range) {
  if (length(range) == 0) return "none";
  return std::to_string(range.begin()) + "-" + std::to_string(range.end() - 1);
}

std::string device_cell(const DeviceInfo& device) {
  if (device.kind() != DEVICE_KIND_CPU) return device_text(device);
  return device.isa() + " x" + std::to_string(device.threads());
}

}  // namespace

std::string stage_content(const StageSpec& stage) {
  const bool ends = stage.has_embedding() || stage.has_head();
  std::string text = stage.has_embedding() ? "embedding" : "";
  const auto add = [&](const std::string& word) { text += (text.empty() ? "" : " ") + word; };
  if (length(stage.layers()) > 0 || !ends) add(range_text(stage.layers()));
  if (stage.has_head()) add("head");
  return text;
}

std::string placement_table(const Topology& topology, const ModelSpec& model,
                            const Placement& placement) {
  std::vector<TextRow> rows = {{"replica", "stage", "rank", "host", "device", "layers", "heads",
                                "ffn", "weights", "kv cache", "activations"}};
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    const auto& stages = placement.replicas(replica).stages();
    for (int stage = 0; stage < stages.size(); ++stage) {
      for (const ShardSpec& shard : stages[stage].shards()) {
        const int worker = worker_of(topology, shard.rank());
        const bool found = worker >= 0;
        rows.push_back({std::to_string(replica), std::to_string(stage),
                        std::to_string(shard.rank()), found ? topology.ranks(worker).host() : "?",
                        found ? device_cell(topology.ranks(worker).device()) : "?",
                        stage_content(stages[stage]), range_text(shard.heads()),
                        range_text(shard.ffn()), format_bytes(shard.weight_bytes()),
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
