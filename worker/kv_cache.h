// SPDX-License-Identifier: Apache-2.0
// The K/V blocks of this rank's layers and KV heads. Who owns which block is the coordinator's
// affair.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace trireme {

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
