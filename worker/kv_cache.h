// SPDX-License-Identifier: Apache-2.0
// The K/V blocks of this rank's layers and KV heads. Who owns which block is the coordinator's
// affair.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/backend.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

// Of a GPU's memory, left for what comes after the largest steps: recordings of steps, code that
// the driver loads, NCCL's buffers.
constexpr uint64_t kMemoryKept = uint64_t{256} << 20;

// How many of `planned` blocks of `block_bytes` there is room for; `growth`: what else is still to
// be allocated. The host's memory (nullopt) has room as the plan says. `others` stays empty.
KvRoom room_for_cache(const std::optional<DeviceMemory>& memory, uint64_t block_bytes,
                      uint64_t growth, int32_t planned);

class KvCache {
 public:
  // Allocates every layer's blocks at once. shape: a layer's, without its storage.
  KvCache(Backend& backend, int32_t num_layers, const KvLayer& shape);

  const KvLayer& layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }
  uint64_t bytes() const { return storage_.bytes(); }

 private:
  Buffer storage_;
  std::vector<KvLayer> layers_;
};

}  // namespace trireme
