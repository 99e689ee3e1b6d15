// SPDX-License-Identifier: Apache-2.0
// The learned prefix of P-tuning v2: keys and values that stand in front of every layer's cache and
// are seen by every token. (Liu et al. 2022; the encoder as ChatGLM2's code has it.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "worker/model/checkpoint.h"
#include "worker/model/slices.h"

namespace trireme {

// The parts of the encoder's tensors that a shard needs: none if the model has no prefix. Throws
// like load_weights.
std::vector<Slice> prefix_slices(const ModelSpec& model, const StageSpec& stage,
                                 const ShardSpec& shard, const Checkpoint& checkpoint);

// Those parts in memory, whole rows as they are stored.
class KeptTensors {
 public:
  explicit KeptTensors(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}
  // These units of `slice`.
  void keep(const Slice& slice, Units units, StoredRows stored);
  // As Checkpoint::read. REQUIRES: all of it was kept.
  void read(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out) const;

 private:
  struct Part {
    Units units;
    std::vector<std::byte> bytes;
  };
  const Checkpoint& checkpoint_;
  std::map<const TensorInfo*, Part> parts_;
};

// Of each layer of the stage, this shard's K, then V, each [K, P, D] of `dtype`: empty if the model
// has no prefix. Computed in fp32 on the backend: the encoder's table as it is, or
// W2 · tanh(W1 · table + b1) + b2.
std::vector<Buffer> load_prefixes(const ModelSpec& model, const StageSpec& stage,
                                  const ShardSpec& shard, DType dtype, const Checkpoint& checkpoint,
                                  const KeptTensors& kept, Backend& backend);

}  // namespace trireme
