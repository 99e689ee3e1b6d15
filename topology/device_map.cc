// SPDX-License-Identifier: Apache-2.0
#include "topology/device_map.h"

#include <google/protobuf/util/json_util.h>

#include "kernels/base/error.h"
#include "topology/shard.h"
#include "topology/text_file.h"

namespace trireme {
namespace {

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
  const std::string text =
      read_text_file(path, "the device map",
                     "give --device_map auto, or a Placement file as `trireme plan --json` "
                     "writes it");
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

std::string placement_to_json(const Placement& placement) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails for messages with Any fields only, which a Placement has not.
  (void)google::protobuf::util::MessageToJsonString(placement, &json, options);
  return json;
}

}  // namespace trireme
