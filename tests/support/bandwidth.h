// SPDX-License-Identifier: Apache-2.0
// Read bandwidth of main memory: the roof under which decoding runs. Measured beside every
// benchmark, for a shared machine has good and bad minutes.
#pragma once

#include <cstddef>

#include "kernels/tensor.h"

namespace trireme {

class ReadBandwidth {
 public:
  // bytes: far above the last-level cache's share, or the figure is the cache's.
  explicit ReadBandwidth(size_t bytes = size_t{1} << 30);

  // Reads the whole buffer once, each thread its own part; bytes per second.
  double measure(int threads) const;

 private:
  Buffer buffer_;
};

}  // namespace trireme
