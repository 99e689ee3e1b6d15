// SPDX-License-Identifier: Apache-2.0
#include "topology/memory.h"

#include <algorithm>
#include <limits>
#include <map>
#include <vector>

#include "kernels/base/error.h"
#include "topology/stage_types.h"
#include "topology/topology.h"
#include "topology/worker_names.h"

namespace trireme {
namespace {

// A context that was not asked for is lowered to this at most.
constexpr int64_t kLeastContext = 256;

template <typename Visit>
void for_each_shard(const Placement& placement, Visit visit) {
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const StageSpec& stage : replica.stages()) {
      for (const ShardSpec& shard : stage.shards()) visit(shard);
    }
  }
}

int64_t blocks_of(const Placement& placement) {
  return (placement.context() + placement.block_size() - 1) / placement.block_size();
}

// "weights 3.1 GiB, activations 20 MiB, …" of one rank.
std::string parts(const ShardSpec& shard, const std::string& kv, uint64_t reserve) {
  return "weights " + format_bytes(shard.weight_bytes()) + ", " + kv + ", activations " +
         format_bytes(shard.activation_bytes()) + ", messages " +
         format_bytes(shard.communication_bytes()) + ", program " + format_bytes(reserve);
}

// What KV blocks there are room for, and the shard that has the least. REQUIRES: num_blocks is 1
// and bytes are predicted.
struct Room {
  int64_t blocks = std::numeric_limits<int64_t>::max();
  ShardSpec shard;
  int worker = 0;
  uint64_t memory = 0, reserve = 0;
};

// What is not for the model: the program itself, its libraries.
uint64_t reserve_of(const Topology& topology, int worker, const PlacementOptions& options) {
  if (topology.ranks(worker).device().kind() != DEVICE_KIND_CUDA) return kReservedBytes;
  const double usable = std::max(0.0, usable_memory(topology, worker, options));
  return memory_of(topology, worker, options) - static_cast<uint64_t>(usable);
}

Room find_room(const Topology& topology, const PlacementOptions& options,
               const Placement& placement) {
  std::map<int32_t, int> workers;
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    workers[topology.ranks(worker).rank()] = worker;
  }
  Room room;
  for_each_shard(placement, [&](const ShardSpec& shard) {
    const int worker = workers.at(shard.rank());
    const uint64_t memory = memory_of(topology, worker, options);
    const uint64_t reserve = reserve_of(topology, worker, options);
    const uint64_t fixed = predicted_bytes(shard) - shard.kv_bytes() + reserve;
    int64_t blocks = fixed > memory ? -1 : std::numeric_limits<int64_t>::max();
    if (fixed <= memory && shard.kv_bytes() > 0) {
      blocks = static_cast<int64_t>((memory - fixed) / shard.kv_bytes());
    }
    if (blocks < room.blocks) room = {blocks, shard, worker, memory, reserve};
  });
  return room;
}

[[noreturn]] void refuse(const Topology& topology, const ModelSpec& model, const Room& room,
                         const Placement& placement) {
  const uint64_t sequence = static_cast<uint64_t>(blocks_of(placement)) * room.shard.kv_bytes();
  throw Error(Code::kResourceExhausted,
              "cannot place " + model.name() + ": rank " + std::to_string(room.shard.rank()) +
                  " (" + topology.ranks(room.worker).host() + ") needs " +
                  format_bytes(predicted_bytes(room.shard) - room.shard.kv_bytes() + sequence +
                               room.reserve) +
                  " (" +
                  parts(room.shard,
                        "one sequence of " + std::to_string(placement.context()) + " positions " +
                            format_bytes(sequence),
                        room.reserve) +
                  "), it has " + format_bytes(room.memory));
}

}  // namespace

uint64_t memory_of(const Topology& topology, int worker, const PlacementOptions& options) {
  uint64_t bytes = topology.ranks(worker).device().memory_bytes();
  for (const auto& [key, limit] : options.max_memory_bytes) {
    if (is_called(topology, worker, key)) bytes = std::min(bytes, limit);
  }
  return bytes;
}

void check_memory_keys(const Topology& topology, const PlacementOptions& options) {
  for (const auto& [key, bytes] : options.max_memory_bytes) {
    if (key == "cpu" || !workers_named(topology, key).empty()) continue;
    throw Error(Code::kInvalidArgument, "cannot use --max_memory: no worker is called " + key +
                                            "; the job has " + known_worker_names(topology));
  }
}

void check_context(const ModelSpec& model, const PlacementOptions& options) {
  if (options.context && (*options.context < 1 || *options.context > model.context_length())) {
    throw Error(Code::kInvalidArgument, "cannot place the model: --context is " +
                                            std::to_string(*options.context) + ", " + model.name() +
                                            " was made for 1 to " +
                                            std::to_string(model.context_length()) + " positions");
  }
}

void set_limits(const ModelSpec& model, const PlacementOptions& options, Placement& placement) {
  check_context(model, options);
  placement.set_dtype(dtype_name(options.dtype));
  if (options.weight_dtypes) *placement.mutable_weight_dtypes() = *options.weight_dtypes;
  placement.set_block_size(options.block_size);
  placement.set_max_sequences(options.max_sequences);
  placement.set_max_batch_tokens(options.max_batch_tokens);
  placement.set_context(options.context.value_or(model.context_length()));
}

void size_kv_cache(const Topology& topology, const ModelSpec& model,
                   const PlacementOptions& options, Placement& placement) {
  set_devices(topology, placement);
  placement.set_num_blocks(1);
  predict_bytes(model, placement);
  Room room = find_room(topology, options, placement);
  if (room.blocks < blocks_of(placement)) {
    const int64_t held = room.blocks * placement.block_size();
    const bool may_lower = !options.context && held >= kLeastContext;
    if (!may_lower) refuse(topology, model, room, placement);
    placement.set_context(static_cast<int32_t>(held));
    predict_bytes(model, placement);  // of smaller tables
    room = find_room(topology, options, placement);
  }
  const int64_t wanted = blocks_of(placement) * placement.max_sequences();
  placement.set_num_blocks(static_cast<int32_t>(
      std::min({room.blocks, wanted, int64_t{INT32_MAX / placement.block_size()}})));
  predict_bytes(model, placement);
}

void set_devices(const Topology& topology, Placement& placement) {
  std::map<int32_t, DeviceInfo> devices;
  for (const RankInfo& rank : topology.ranks()) devices[rank.rank()] = rank.device();
  for (ReplicaSpec& replica : *placement.mutable_replicas()) {
    for (StageSpec& stage : *replica.mutable_stages()) {
      for (ShardSpec& shard : *stage.mutable_shards()) {
        const DeviceInfo& device = devices[shard.rank()];
        shard.set_threads(device.kind() == DEVICE_KIND_CPU ? device.threads() : 0);
        shard.clear_device();
        if (device.kind() == DEVICE_KIND_CUDA) shard.set_device(DEVICE_KIND_CUDA);
      }
    }
  }
}

uint64_t predicted_bytes(const ShardSpec& shard) {
  return shard.weight_bytes() + shard.kv_bytes() + shard.activation_bytes() +
         shard.communication_bytes();
}

void check_memory(const Topology& topology, const Placement& placement) {
  for_each_shard(placement, [&](const ShardSpec& shard) {
    const int worker = worker_of(topology, shard.rank());
    const RankInfo& rank = topology.ranks(worker);
    const uint64_t reserve = reserve_of(topology, worker, {});
    const uint64_t memory = rank.device().memory_bytes();
    const uint64_t needed = predicted_bytes(shard) + reserve;
    if (needed <= memory) return;
    const uint64_t fixed = needed - shard.kv_bytes();
    const uint64_t block = shard.kv_bytes() / static_cast<uint64_t>(placement.num_blocks());
    const uint64_t blocks = fixed < memory && block > 0 ? (memory - fixed) / block : 0;
    throw Error(Code::kResourceExhausted,
                "cannot use the placement: rank " + std::to_string(shard.rank()) + " (" +
                    rank.host() + ") needs " + format_bytes(needed) + " (" +
                    parts(shard, "KV " + format_bytes(shard.kv_bytes()), reserve) + "), it has " +
                    format_bytes(memory) + "; " +
                    (blocks > 0 ? "num_blocks " + std::to_string(blocks) + " would fit it"
                                : "give it fewer layers, or lower max_batch_tokens"));
  });
}

}  // namespace trireme
