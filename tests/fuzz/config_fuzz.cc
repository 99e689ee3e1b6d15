// SPDX-License-Identifier: Apache-2.0
// What the model is, and where it goes: config.json with generation_config.json, device maps.
#include <google/protobuf/util/message_differencer.h>

#include "tests/fuzz/fuzz.h"
#include "tests/support/models.h"
#include "topology/device_map.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "worker/model/config.h"

namespace trireme::fuzz {
namespace {

using google::protobuf::util::MessageDifferencer;

void check_spec(const ModelSpec& spec) {
  CHECK(spec.num_layers() >= 1 && spec.num_layers() <= kMaxLayers, "layers");
  CHECK(spec.hidden_size() >= 1 && spec.hidden_size() <= kMaxHidden, "hidden size");
  CHECK(spec.num_kv_heads() >= 1 && spec.num_heads() % spec.num_kv_heads() == 0, "heads");
  CHECK(spec.head_dim() >= 1 && spec.head_dim() <= kMaxHeadDim, "head size");
  CHECK(spec.ffn_size() >= 1 && spec.ffn_size() <= kMaxFfn, "FFN size");
  CHECK(spec.vocab_size() >= 1 && spec.vocab_size() <= kMaxVocab, "vocabulary");
  CHECK(spec.rope().rotary_dim() % 2 == 0 && spec.rope().rotary_dim() <= spec.head_dim(), "rotary");
  for (const int32_t id : spec.stop_ids()) CHECK(id >= 0 && id < spec.vocab_size(), "stop ids");
  ModelSpec again;
  CHECK(again.ParseFromString(spec.SerializeAsString()) && MessageDifferencer::Equals(again, spec),
        "what rank 0 reads, a worker can parse");
}

// The shards of every stage are those of the model, and their bytes can be counted.
void check_placement(const ModelSpec& model, const Placement& placement) {
  for (const ReplicaSpec& replica : placement.replicas()) {
    int32_t layers = 0;
    for (const StageSpec& stage : replica.stages()) {
      layers += length(stage.layers());
      int32_t heads = 0;
      for (const ShardSpec& shard : stage.shards()) {
        validate_shard(model, shard);
        heads += length(shard.heads());
        CHECK(shard.weight_bytes() < uint64_t{1} << 56, "bytes of weights");
        CHECK(shard.kv_bytes() < uint64_t{1} << 62, "bytes of KV");
        CHECK(shard.activation_bytes() < uint64_t{1} << 62, "bytes of activations");
      }
      CHECK(heads == model.num_heads(), "every head has a rank");
    }
    CHECK(layers == model.num_layers(), "every layer has a stage");
  }
}

}  // namespace

void fuzz_config(std::string_view input) {
  static InputFolder folder({"config.json", "generation_config.json", "model.safetensors"});
  static const bool prepared = [] {
    folder.set(2, std::string("\2\0\0\0\0\0\0\0{}", 10));
    return true;
  }();
  CHECK(prepared, "");
  const auto [config, generation] = cut(input);
  folder.set(0, config);
  folder.set(1, generation.empty() ? "{}" : generation);
  ModelSpec spec;
  if (!accepts([&] { spec = read_model_spec(folder.path()); })) return;
  check_spec(spec);
  (void)accepts([&] {
    const Topology topology = make_topology(3, uint64_t{1} << 50);
    PlacementOptions options;
    options.tp = 1 + static_cast<int32_t>(input.size() % 3);
    const Placement placement = plan_placement(topology, spec, options);
    check_placement(spec, placement);
    validate_placement(topology, spec, placement);
  });
}

void fuzz_device_map(std::string_view input) {
  static const ModelSpec model = read_model_spec(TRIREME_SOURCE_DIR "/tests/data/tiny-chatglm3");
  static const Topology topology = make_topology(4, uint64_t{1} << 40);
  static InputFile file, copy;
  file.set(input);
  Placement placement;
  PlacementOptions options;
  options.max_sequences = 2;
  const bool taken =
      accepts([&] { placement = place_by_device_map(file.path(), topology, model, options); });
  if (!taken) return;
  validate_placement(topology, model, placement);
  check_placement(model, placement);
  copy.set(placement_to_json(placement));
  // By their bytes: a prediction may be no number.
  const Placement again = place_by_device_map(copy.path(), topology, model, options);
  CHECK(again.SerializeAsString() == placement.SerializeAsString(),
        "what `plan --json` writes, --device_map reads");
}

}  // namespace trireme::fuzz
