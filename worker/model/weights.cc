// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "topology/shard.h"
#include "worker/model/family.h"
#include "worker/model/prefix.h"
#include "worker/model/slices.h"

namespace trireme {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;

// GGUF stores head rows so that row 2i + s is what HF has at s · D/2 + i; this gives HF's order
// back. items: [heads · D] of item_bytes each.
void unpermute(std::byte* items, int64_t count, int64_t item_bytes, int64_t head_dim) {
  std::vector<std::byte> head(head_dim * item_bytes);
  for (int64_t begin = 0; begin < count; begin += head_dim) {
    std::byte* target = items + begin * item_bytes;
    std::memcpy(head.data(), target, head.size());
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      for (int64_t s = 0; s < 2; ++s) {
        std::memcpy(target + (s * head_dim / 2 + i) * item_bytes,
                    head.data() + (2 * i + s) * item_bytes, item_bytes);
      }
    }
  }
}

class Loader {
 public:
  Loader(const ModelSpec& model, const ShardSpec& shard, Checkpoint& checkpoint, Backend& backend,
         const std::function<void(uint64_t)>& progress)
      : head_dim_(model.head_dim()),
        norm_offset_(model.checkpoint_format() == "gguf" ? 0
                                                         : find_family(model.family()).norm_offset),
        plan_(model, shard, checkpoint),
        checkpoint_(checkpoint),
        backend_(backend),
        progress_(progress),
        read_before_(checkpoint.bytes_read()) {}

  uint64_t allocated() const { return allocated_; }

  Weight matrix(Slot slot, int32_t layer, DType dtype) {
    const std::vector<Slice> slices = plan_.slices(slot, layer);
    Weight weight = backend_.make_weight(dtype, plan_.rows(slot), plan_.cols(slot));
    allocated_ += weight.storage.bytes();
    for (const Slice& slice : slices) fill(weight, slice);
    return weight;
  }

  // fp32 whatever the matrices are: norms and biases are small.
  Buffer vector(Slot slot, int32_t layer) {
    std::vector<float> values(plan_.rows(slot));
    for (const Slice& slice : plan_.slices(slot, layer)) {
      float* target = values.data() + slice.local;
      checkpoint_.read(*slice.tensor, slice.row, slice.col,
                       Tensor(target, DType::kF32, 1, slice.cols));
      if (slice.permuted) {
        unpermute(reinterpret_cast<std::byte*>(target), slice.cols, sizeof(float), head_dim_);
      }
      advance();
    }
    if (is_norm(slot)) {
      for (float& value : values) value += norm_offset_;
    }
    const size_t bytes = values.size() * sizeof(float);
    Buffer buffer = backend_.allocate(bytes);
    backend_.upload(buffer.data(), values.data(), bytes);
    backend_.synchronize();  // `values` ends here
    allocated_ += buffer.bytes();
    return buffer;
  }

  // Reports what was read if that is worth a report.
  void advance(bool always = false) {
    const uint64_t done = checkpoint_.bytes_read() - read_before_;
    if (!always && done - reported_ < static_cast<uint64_t>(kChunkBytes)) return;
    reported_ = done;
    if (progress_) progress_(done);
  }

 private:
  // A few MiB of rows at a time, through host memory in the serving type.
  void fill(Weight& weight, const Slice& slice) {
    if (slice.rows == 0 || slice.cols == 0) return;
    const int64_t row_bytes = slice.cols * element_size(weight.dtype);
    const int64_t unit = slice.permuted ? head_dim_ : 1;  // whole heads are un-permuted
    const int64_t chunk = std::max<int64_t>(kChunkBytes / (row_bytes * unit), 1) * unit;
    scratch_.resize(static_cast<size_t>(std::min(chunk, slice.rows) * row_bytes));
    for (int64_t row = 0; row < slice.rows; row += chunk) {
      const int64_t rows = std::min(chunk, slice.rows - row);
      const Tensor out(scratch_.data(), weight.dtype, rows, slice.cols);
      checkpoint_.read(*slice.tensor, slice.row + row, slice.col, out);
      if (slice.permuted) unpermute(scratch_.data(), rows, row_bytes, head_dim_);
      backend_.pack_rows(weight, slice.local + row, out);
      backend_.synchronize();  // the scratch is used again
      advance();
    }
  }

  const int64_t head_dim_;
  const float norm_offset_;
  SlicePlan plan_;
  Checkpoint& checkpoint_;
  Backend& backend_;
  const std::function<void(uint64_t)>& progress_;
  const uint64_t read_before_;
  uint64_t reported_ = 0;
  uint64_t allocated_ = 0;
  std::vector<std::byte> scratch_;
};

struct MatrixPlace {
  Slot slot;
  Matrix matrix;
  Weight LayerWeights::*member;
};
constexpr MatrixPlace kMatrices[] = {
    {Slot::kQkv, Matrix::kQkv, &LayerWeights::qkv},
    {Slot::kAttentionOut, Matrix::kAttentionOut, &LayerWeights::attention_out},
    {Slot::kGateUp, Matrix::kGateUp, &LayerWeights::gate_up},
    {Slot::kDown, Matrix::kDown, &LayerWeights::down},
};
struct VectorPlace {
  Slot slot;
  Buffer LayerWeights::*member;
};
constexpr VectorPlace kVectors[] = {
    {Slot::kAttentionNorm, &LayerWeights::attention_norm},
    {Slot::kQkvBias, &LayerWeights::qkv_bias},
    {Slot::kQNorm, &LayerWeights::q_norm},
    {Slot::kKNorm, &LayerWeights::k_norm},
    {Slot::kAttentionOutBias, &LayerWeights::attention_out_bias},
    {Slot::kPostAttentionNorm, &LayerWeights::post_attention_norm},
    {Slot::kMlpNorm, &LayerWeights::mlp_norm},
    {Slot::kGateUpBias, &LayerWeights::gate_up_bias},
    {Slot::kDownBias, &LayerWeights::down_bias},
    {Slot::kPostMlpNorm, &LayerWeights::post_mlp_norm},
};

LayerWeights load_layer(Loader& loader, const std::vector<Slot>& slots, const Placement& placement,
                        int32_t layer) {
  LayerWeights weights;
  for (Slot slot : slots) {
    for (const MatrixPlace& place : kMatrices) {
      if (place.slot != slot) continue;
      weights.*place.member =
          loader.matrix(slot, layer, weight_dtype(placement, place.matrix, layer));
    }
    for (const VectorPlace& place : kVectors) {
      if (place.slot == slot) weights.*place.member = loader.vector(slot, layer);
    }
  }
  return weights;
}

}  // namespace

Weights load_weights(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                     const Placement& placement, Checkpoint& checkpoint, Backend& backend,
                     const std::function<void(uint64_t bytes_done)>& progress) {
  // Finds a missing tensor before minutes of reading are spent.
  checkpoint_bytes(model, stage, shard, checkpoint);
  Loader loader(model, shard, checkpoint, backend, progress);
  Weights weights;
  std::vector<Buffer> prefixes =
      load_prefixes(model, stage, shard, cache_dtype(placement), checkpoint, backend);
  loader.advance();
  const auto table = [&](Slot slot, Matrix matrix) {
    return loader.matrix(slot, 0, weight_dtype(placement, matrix));
  };
  for (Slot slot : outer_slots(model, stage)) {
    if (slot == Slot::kEmbedding) weights.embedding = table(slot, Matrix::kEmbedding);
    if (slot == Slot::kHead) weights.head = table(slot, Matrix::kHead);
    if (slot == Slot::kFinalNorm) weights.final_norm = loader.vector(slot, 0);
  }
  const std::vector<Slot> slots = layer_slots(model, shard);
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    weights.layers.push_back(load_layer(loader, slots, placement, layer));
  }
  weights.bytes = loader.allocated();
  for (size_t index = 0; index < prefixes.size(); ++index) {
    weights.bytes += prefixes[index].bytes();
    weights.layers[index].prefix = std::move(prefixes[index]);
  }
  loader.advance(true);
  return weights;
}

uint64_t checkpoint_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Checkpoint& checkpoint) {
  const SlicePlan plan(model, shard, checkpoint);
  uint64_t bytes = prefix_checkpoint_bytes(model, stage, shard, checkpoint);
  const auto count = [&](Slot slot, int32_t layer) {
    for (const Slice& slice : plan.slices(slot, layer)) {
      if (slice.rows == 0 || slice.cols == 0) continue;
      bytes += bytes_touched(*slice.tensor, slice.rows, slice.cols);
    }
  };
  for (Slot slot : outer_slots(model, stage)) count(slot, 0);
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    for (Slot slot : layer_slots(model, shard)) count(slot, layer);
  }
  return bytes;
}

}  // namespace trireme
