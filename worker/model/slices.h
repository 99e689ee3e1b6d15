// SPDX-License-Identifier: Apache-2.0
// Which parts of which tensors of a checkpoint a shard needs. All that plan, read and count ask
// here, so what is announced is what is read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "worker/model/checkpoint.h"
#include "worker/model/family.h"

namespace trireme {

// What one tensor of the checkpoint gives to a slot of this shard. A vector's values count as
// columns of one row in the checkpoint, and as rows in the slot.
struct Slice {
  const TensorInfo* tensor = nullptr;
  int64_t row = 0;
  int64_t rows = 0;
  int64_t col = 0;
  int64_t cols = 0;
  // Columns beside these that share scales with them where the slot is quantised
  // (Backend::make_quantised).
  int64_t before = 0;
  int64_t after = 0;
  int64_t local = 0;      // first row in the slot
  bool permuted = false;  // its rows stand with rotary pairs adjacent
};

// The units of its tensor that a slice touches.
struct Units {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t end() const { return begin + count; }
};
Units units_of(const Slice& slice);

// A slice and what it is for.
struct Want {
  Slice slice;
  std::optional<Slot> slot;  // none: kept as it is stored, for the learned prefix
  int32_t layer = 0;
};

bool is_vector(Slot slot);  // fp32 whatever the serving type
bool is_norm(Slot slot);    // of those, the weights of norms

// The slots outside the layers that a stage has, and those of each layer of the model.
std::vector<Slot> outer_slots(const ModelSpec& model, const StageSpec& stage);
std::vector<Slot> layer_slots(const ModelSpec& model, const ShardSpec& shard);

class SlicePlan {
 public:
  SlicePlan(const ModelSpec& model, const ShardSpec& shard, const Checkpoint& checkpoint);

  // Of the slot on this shard.
  int64_t rows(Slot slot) const;
  int64_t cols(Slot slot) const { return columns(slot).size; }
  // Where these columns begin in the whole matrix, and what it has.
  int64_t first_col(Slot slot) const { return columns(slot).begin; }
  int64_t all_cols(Slot slot) const { return columns(slot).total; }

  // Throws kInvalidArgument for a tensor that is missing or of another shape, naming it and both
  // shapes, and for a bias that the config knows nothing of.
  std::vector<Slice> slices(Slot slot, int32_t layer) const;

  // The tensor `name`, which must be of `shape`.
  const TensorInfo& tensor(const std::string& name, const std::vector<int64_t>& shape) const;

 private:
  // [begin, begin + size) of `total` rows or columns.
  struct Part {
    int64_t total = 0;
    int64_t begin = 0;
    int64_t size = 0;
  };

  Part part(Segment segment) const;
  Part columns(Slot slot) const;
  Slice slice(const TensorInfo& tensor, Slot slot, Segment segment, int64_t begin) const;
  const TensorInfo& find_tensor(const WeightRule& rule, int32_t layer) const;
  void refuse_unknown_bias(const std::string& weight, int32_t layer) const;

  const ModelSpec& model_;
  const ShardSpec& shard_;
  const Checkpoint& checkpoint_;
  bool permutes_qk_;
};

}  // namespace trireme
