// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "topology/shard.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;

// [begin, begin + size) of `total` rows or columns.
struct Part {
  int64_t total = 0;
  int64_t begin = 0;
  int64_t size = 0;
};

// What one tensor of the checkpoint gives to a slot of this shard. A vector's values count as
// columns of one row in the checkpoint, and as rows in the slot.
struct Slice {
  const TensorInfo* tensor = nullptr;
  int64_t row = 0;
  int64_t rows = 0;
  int64_t col = 0;
  int64_t cols = 0;
  int64_t local = 0;      // first row in the slot
  bool permuted = false;  // its rows stand with rotary pairs adjacent; see unpermute()
};

bool is_vector(Slot slot) {
  return slot == Slot::kAttentionNorm || slot == Slot::kMlpNorm || slot == Slot::kFinalNorm ||
         slot == Slot::kQkvBias;
}

// The order of rows in the slot, whatever their order in the checkpoint.
std::vector<Segment> segments_of(Slot slot) {
  switch (slot) {
    case Slot::kQkv:
    case Slot::kQkvBias: return {Segment::kQ, Segment::kK, Segment::kV};
    case Slot::kGateUp: return {Segment::kGate, Segment::kUp};
    case Slot::kEmbedding:
    case Slot::kHead: return {Segment::kVocab};
    default: return {Segment::kWhole};
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// Finds and checks what a shard reads; the loader and checkpoint_bytes() both ask it.
class SlicePlan {
 public:
  SlicePlan(const ModelSpec& model, const ShardSpec& shard, const Checkpoint& checkpoint)
      : model_(model),
        shard_(shard),
        checkpoint_(checkpoint),
        permutes_qk_(model.checkpoint_format() == "gguf" &&
                     find_family(model.family()).gguf_permutes_qk) {}

  int64_t rows(Slot slot) const {
    int64_t rows = 0;
    for (Segment segment : segments_of(slot)) rows += part(segment).size;
    return rows;
  }

  Part columns(Slot slot) const {
    if (slot == Slot::kAttentionOut) return part(Segment::kQ);
    if (slot == Slot::kDown) return part(Segment::kUp);
    return {model_.hidden_size(), 0, model_.hidden_size()};
  }

  std::vector<Slice> slices(Slot slot, int32_t layer) const {
    std::vector<Slice> slices;
    for (const WeightRule& rule : weight_rules(model_)) {
      if (rule.slot != slot) continue;
      const TensorInfo& tensor = find_tensor(rule, layer);
      int64_t begin = 0;  // of the segment, in the tensor
      for (Segment segment : rule.segments) {
        slices.push_back(slice(tensor, slot, segment, begin));
        begin += part(segment).total;
      }
    }
    return slices;
  }

 private:
  Part part(Segment segment) const {
    const auto of = [](int64_t total, const Range& range, int64_t unit) {
      return Part{total * unit, range.begin() * unit, length(range) * unit};
    };
    switch (segment) {
      case Segment::kQ: return of(model_.num_heads(), shard_.heads(), model_.head_dim());
      case Segment::kK:
      case Segment::kV: return of(model_.num_kv_heads(), shard_.kv_heads(), model_.head_dim());
      case Segment::kGate:
      case Segment::kUp: return of(model_.ffn_size(), shard_.ffn(), 1);
      case Segment::kVocab: return of(model_.vocab_size(), shard_.vocab(), 1);
      case Segment::kWhole: break;
    }
    return {model_.hidden_size(), 0, model_.hidden_size()};
  }

  Slice slice(const TensorInfo& tensor, Slot slot, Segment segment, int64_t begin) const {
    const Part rows = part(segment);
    const Part cols = columns(slot);
    Slice slice;
    slice.tensor = &tensor;
    slice.permuted = permutes_qk_ && (segment == Segment::kQ || segment == Segment::kK);
    for (Segment before : segments_of(slot)) {
      if (before == segment) break;
      slice.local += part(before).size;
    }
    if (is_vector(slot)) {
      slice.rows = 1;
      slice.col = begin + rows.begin;
      slice.cols = rows.size;
    } else {
      slice.row = begin + rows.begin;
      slice.rows = rows.size;
      slice.col = cols.begin;
      slice.cols = cols.size;
    }
    return slice;
  }

  const TensorInfo& find_tensor(const WeightRule& rule, int32_t layer) const {
    const std::string name = tensor_name(rule, layer);
    std::vector<int64_t> shape = {0};
    for (Segment segment : rule.segments) shape[0] += part(segment).total;
    if (!is_vector(rule.slot)) shape.push_back(columns(rule.slot).total);
    const TensorInfo* tensor = checkpoint_.find(name);
    if (tensor == nullptr || tensor->shape != shape) {
      throw Error(Code::kInvalidArgument,
                  "cannot load " + model_.name() + ": tensor " + name + " is " +
                      (tensor == nullptr ? "missing" : "of shape " + shape_text(tensor->shape)) +
                      "; the config needs shape " + shape_text(shape));
    }
    refuse_unknown_bias(name, layer);
    return *tensor;
  }

  // A bias beside a weight that has none in this family (o_proj with attention_bias, adapters): to
  // ignore it would give wrong tokens.
  void refuse_unknown_bias(const std::string& weight, int32_t layer) const {
    constexpr std::string_view kWeight = ".weight";
    if (!weight.ends_with(kWeight)) return;
    const std::string bias = weight.substr(0, weight.size() - kWeight.size()) + ".bias";
    if (checkpoint_.find(bias) == nullptr) return;
    for (const WeightRule& rule : weight_rules(model_)) {
      const bool loaded = rule.slot == Slot::kQkvBias && model_.qkv_bias();
      if (loaded && tensor_name(rule, layer) == bias) return;
    }
    throw Error(Code::kInvalidArgument, "cannot load " + model_.name() + ": tensor " + bias +
                                            " is there, but " + model_.family() +
                                            " with this config has no such bias");
  }

  const ModelSpec& model_;
  const ShardSpec& shard_;
  const Checkpoint& checkpoint_;
  bool permutes_qk_;
};

bool needs_embedding(const ModelSpec& model, const StageSpec& stage) {
  return stage.has_embedding() || (stage.has_head() && model.tied_embeddings());
}

// The slots outside the layers that a stage has, and those of each layer.
std::vector<Slot> outer_slots(const ModelSpec& model, const StageSpec& stage) {
  std::vector<Slot> slots;
  if (needs_embedding(model, stage)) slots.push_back(Slot::kEmbedding);
  if (stage.has_head()) slots.push_back(Slot::kFinalNorm);
  if (stage.has_head() && !model.tied_embeddings()) slots.push_back(Slot::kHead);
  return slots;
}

std::vector<Slot> layer_slots(const ModelSpec& model) {
  std::vector<Slot> slots = {Slot::kAttentionNorm, Slot::kQkv,    Slot::kAttentionOut,
                             Slot::kMlpNorm,       Slot::kGateUp, Slot::kDown};
  if (model.qkv_bias()) slots.push_back(Slot::kQkvBias);
  return slots;
}

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
  Loader(const ModelSpec& model, const ShardSpec& shard, DType dtype, Checkpoint& checkpoint,
         Backend& backend, const std::function<void(uint64_t)>& progress)
      : head_dim_(model.head_dim()),
        plan_(model, shard, checkpoint),
        dtype_(dtype),
        checkpoint_(checkpoint),
        backend_(backend),
        progress_(progress),
        read_before_(checkpoint.bytes_read()) {}

  uint64_t allocated() const { return allocated_; }

  Weight matrix(Slot slot, int32_t layer) {
    const std::vector<Slice> slices = plan_.slices(slot, layer);
    Weight weight = backend_.make_weight(dtype_, plan_.rows(slot), plan_.columns(slot).size);
    allocated_ += weight.storage.bytes();
    for (const Slice& slice : slices) fill(weight, slice);
    return weight;
  }

  // fp32 whatever the dtype: norms and biases are small.
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
    const int64_t row_bytes = slice.cols * element_size(dtype_);
    const int64_t unit = slice.permuted ? head_dim_ : 1;  // whole heads are un-permuted
    const int64_t chunk = std::max<int64_t>(kChunkBytes / (row_bytes * unit), 1) * unit;
    scratch_.resize(static_cast<size_t>(std::min(chunk, slice.rows) * row_bytes));
    for (int64_t row = 0; row < slice.rows; row += chunk) {
      const int64_t rows = std::min(chunk, slice.rows - row);
      const Tensor out(scratch_.data(), dtype_, rows, slice.cols);
      checkpoint_.read(*slice.tensor, slice.row + row, slice.col, out);
      if (slice.permuted) unpermute(scratch_.data(), rows, row_bytes, head_dim_);
      backend_.pack_rows(weight, slice.local + row, out);
      backend_.synchronize();  // the scratch is used again
      advance();
    }
  }

  const int64_t head_dim_;
  SlicePlan plan_;
  const DType dtype_;
  Checkpoint& checkpoint_;
  Backend& backend_;
  const std::function<void(uint64_t)>& progress_;
  const uint64_t read_before_;
  uint64_t reported_ = 0;
  uint64_t allocated_ = 0;
  std::vector<std::byte> scratch_;
};

LayerWeights load_layer(Loader& loader, int32_t layer, bool qkv_bias) {
  LayerWeights weights;
  weights.attention_norm = loader.vector(Slot::kAttentionNorm, layer);
  weights.qkv = loader.matrix(Slot::kQkv, layer);
  if (qkv_bias) weights.qkv_bias = loader.vector(Slot::kQkvBias, layer);
  weights.attention_out = loader.matrix(Slot::kAttentionOut, layer);
  weights.mlp_norm = loader.vector(Slot::kMlpNorm, layer);
  weights.gate_up = loader.matrix(Slot::kGateUp, layer);
  weights.down = loader.matrix(Slot::kDown, layer);
  return weights;
}

}  // namespace

Weights load_weights(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                     DType dtype, Checkpoint& checkpoint, Backend& backend,
                     const std::function<void(uint64_t bytes_done)>& progress) {
  // Finds a missing tensor before minutes of reading are spent.
  checkpoint_bytes(model, stage, shard, checkpoint);
  Loader loader(model, shard, dtype, checkpoint, backend, progress);
  Weights weights;
  if (needs_embedding(model, stage)) weights.embedding = loader.matrix(Slot::kEmbedding, 0);
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    weights.layers.push_back(load_layer(loader, layer, model.qkv_bias()));
  }
  if (stage.has_head()) {
    weights.final_norm = loader.vector(Slot::kFinalNorm, 0);
    if (!model.tied_embeddings()) weights.head = loader.matrix(Slot::kHead, 0);
  }
  loader.advance(true);
  weights.bytes = loader.allocated();
  return weights;
}

uint64_t checkpoint_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Checkpoint& checkpoint) {
  const SlicePlan plan(model, shard, checkpoint);
  uint64_t bytes = 0;
  const auto count = [&](Slot slot, int32_t layer) {
    for (const Slice& slice : plan.slices(slot, layer)) {
      if (slice.rows == 0 || slice.cols == 0) continue;
      bytes += bytes_touched(*slice.tensor, slice.rows, slice.cols);
    }
  };
  for (Slot slot : outer_slots(model, stage)) count(slot, 0);
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    for (Slot slot : layer_slots(model)) count(slot, layer);
  }
  return bytes;
}

}  // namespace trireme
