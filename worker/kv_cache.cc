// SPDX-License-Identifier: Apache-2.0
#include "worker/kv_cache.h"

#include "kernels/sizes.h"

namespace trireme {

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
