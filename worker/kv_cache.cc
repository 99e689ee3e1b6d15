// SPDX-License-Identifier: Apache-2.0
#include "worker/kv_cache.h"

#include <algorithm>

#include "kernels/sizes.h"

namespace trireme {

KvRoom room_for_cache(const std::optional<DeviceMemory>& memory, uint64_t block_bytes,
                      uint64_t growth, int32_t planned) {
  KvRoom room;
  room.set_num_blocks(planned);
  room.set_block_bytes(block_bytes);
  if (!memory) return room;
  room.set_free_bytes(memory->free_bytes);
  room.set_kept_bytes(kMemoryKept + growth);
  const uint64_t usable = memory->free_bytes - std::min(memory->free_bytes, room.kept_bytes());
  if (block_bytes > 0) {
    room.set_num_blocks(
        static_cast<int32_t>(std::min(usable / block_bytes, static_cast<uint64_t>(planned))));
  }
  return room;
}

KvCache::KvCache(Backend& backend, int32_t num_layers, const KvLayer& shape) {
  const int64_t layer_bytes = kv_layer_bytes(shape.dtype, shape.num_blocks, shape.num_heads,
                                             shape.block_size, shape.head_dim);
  storage_ = backend.allocate(static_cast<size_t>(num_layers * layer_bytes));
  auto* data = static_cast<std::byte*>(storage_.data());
  for (int32_t index = 0; index < num_layers; ++index) {
    KvLayer layer = shape;
    layer.k = data + index * layer_bytes;
    layer.v = data + index * layer_bytes + layer_bytes / 2;
    layers_.push_back(layer);
  }
}

}  // namespace trireme
