// SPDX-License-Identifier: Apache-2.0
#include "topology/device_map.h"

#include <google/protobuf/util/json_util.h>

#include "kernels/base/error.h"
#include "topology/device_map_accelerate.h"
#include "topology/device_map_hf.h"
#include "topology/json_object.h"
#include "topology/memory.h"
#include "topology/shard.h"
#include "topology/text_file.h"

namespace trireme {
namespace {

std::string read_map(const std::string& path) {
  return read_text_file(path, "the device map",
                        "give auto, balanced, balanced_low_0, sequential, an HF map of modules to "
                        "devices, or a Placement as `trireme plan --json` writes it");
}

nlohmann::json read_object(const std::string& path) {
  return parse_json_object(read_map(path), "cannot read the device map " + path);
}

// What is predicted of a placement that was given; what its file says of a search is not of it.
Placement timed(const Topology& topology, const ModelSpec& model, const PlacementOptions& options,
                Placement placement) {
  placement.clear_predicted();
  predict_times(topology, model, options, placement);
  placement.mutable_predicted()->set_method("given");
  return placement;
}

// A shard of which only the rank is given owns an even cut of its group.
void fill_ranges(const ModelSpec& model, StageSpec& stage) {
  for (int tp_rank = 0; tp_rank < stage.shards_size(); ++tp_rank) {
    ShardSpec& shard = *stage.mutable_shards(tp_rank);
    if (shard.has_heads() || shard.has_kv_heads() || shard.has_ffn() || shard.has_vocab()) continue;
    const int32_t rank = shard.rank();
    shard = make_shard(model, tp_rank, stage.shards_size());
    shard.set_rank(rank);
  }
}

}  // namespace

Placement read_device_map(const std::string& path, const ModelSpec& model) {
  const std::string text = read_map(path);
  Placement placement;
  const auto status = google::protobuf::util::JsonStringToMessage(text, &placement);
  if (!status.ok()) {
    throw Error(Code::kInvalidArgument, "cannot read the device map " + path + ": " +
                                            std::string(status.message()) +
                                            "; needed is a Placement as `trireme plan --json` "
                                            "writes it");
  }
  for (ReplicaSpec& replica : *placement.mutable_replicas()) {
    for (StageSpec& stage : *replica.mutable_stages()) fill_ranges(model, stage);
  }
  return placement;
}

bool is_placement_file(const std::string& device_map) {
  if (device_map == "auto" || parse_accelerate_strategy(device_map)) return false;
  const nlohmann::json object = read_object(device_map);
  const google::protobuf::Descriptor& fields = *Placement::descriptor();
  for (const auto& [name, value] : object.items()) {
    if (fields.FindFieldByName(name) || fields.FindFieldByCamelcaseName(name)) return true;
  }
  return false;
}

Placement place_by_device_map(const std::string& device_map, const Topology& topology,
                              const ModelSpec& model, const PlacementOptions& options) {
  if (const auto strategy = parse_accelerate_strategy(device_map)) {
    return timed(topology, model, options,
                 place_by_accelerate(*strategy, topology, model, options));
  }
  if (!is_placement_file(device_map)) {
    return timed(topology, model, options,
                 place_by_hf_map(read_object(device_map), device_map, topology, model, options));
  }
  Placement placement = read_device_map(device_map, model);
  validate_placement(topology, model, placement);
  check_quantised(topology, placement);
  set_devices(topology, placement);
  predict_bytes(model, placement);
  check_memory(topology, placement);
  PlacementOptions own = options;
  own.dtype = parse_dtype(placement.dtype()).value();
  if (placement.has_weight_dtypes()) own.weight_dtypes = placement.weight_dtypes();
  return timed(topology, model, own, std::move(placement));
}

Placement place_model(const std::string& device_map, const Topology& topology,
                      const ModelSpec& model, const PlacementOptions& options) {
  check_quantised(topology, options.weight_dtypes);
  const bool automatic = device_map == "auto";
  const auto plan = [&](const Topology& machine, const PlacementOptions& wanted) {
    return plan_placement(machine, model, wanted);
  };
  const auto place = [&](const Topology& machine, const PlacementOptions& wanted) {
    return automatic ? plan(machine, wanted)
                     : place_by_device_map(device_map, machine, model, wanted);
  };
  try {
    return place(topology, options);
  } catch (const Error& error) {
    if (error.code() != Code::kResourceExhausted || (!automatic && is_placement_file(device_map))) {
      throw;
    }
    std::string fits = nearest_fit(topology, model, options, place);
    if (!automatic) {
      try {
        plan(topology, options);
        fits += (fits.empty() ? "; it fits with " : ", or ") + std::string("--device_map auto");
      } catch (const Error&) {  // no better
      }
    }
    throw Error(error.code(), error.what() + fits);
  }
}

std::string placement_to_json(const Placement& placement) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails for messages with Any fields only, which a Placement has not.
  (void)google::protobuf::util::MessageToJsonString(placement, &json, options);
  return json;
}

}  // namespace trireme
