// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <string>

#include "kernels/base/error.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "topology/worker_names.h"

namespace trireme {
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
  // Beyond, the bytes of a stage's KV cache are more than 64 bits count.
  constexpr double kMostKvBytes = 1e18;
  const double position = 2.0 * double(element_size(cache_dtype(placement))) * model.num_layers() *
                          model.num_kv_heads() * model.head_dim();
  positive("num_blocks", placement.num_blocks(),
           static_cast<int32_t>(
               std::min(kMostKvBytes / position / placement.block_size(), double(INT32_MAX))));
  positive("max_sequences", placement.max_sequences(), kMaxSequences);
  positive("max_batch_tokens", placement.max_batch_tokens(), kMaxBatchTokens);
  positive("context", placement.context(), model.context_length());
  for (const ReplicaSpec& replica : placement.replicas()) {
    if (replica.num_blocks() != 0) {
      positive("num_blocks of a replica", replica.num_blocks(), placement.num_blocks());
    }
  }
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

}  // namespace trireme
