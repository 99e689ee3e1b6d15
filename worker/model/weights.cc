// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "topology/shard.h"
#include "worker/digest.h"
#include "worker/model/family.h"
#include "worker/model/prefix.h"
#include "worker/model/slices.h"

namespace trireme {
namespace {

constexpr int64_t kChunkBytes = 16 << 20;   // that a backend packs at once
constexpr int64_t kShareBytes = 256 << 10;  // that a thread converts at once
constexpr uint64_t kReportBytes = 4 << 20;

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

// That holds all values of the tensor as they are.
DType wide_type(const TensorInfo& tensor) {
  if (tensor.type == "BF16") return DType::kBF16;
  return tensor.type == "F16" ? DType::kF16 : DType::kF32;
}

// Where the parts of a slot go.
struct Target {
  Weight* matrix = nullptr;
  Buffer* vector = nullptr;
  std::vector<float> values;  // of the vector, until all are there
};

// Memory for all weights first, which then fill as the parts come: in the order of the file.
class Loader {
 public:
  Loader(const ModelSpec& model, const ReadPlan::Member& member, const Placement& placement,
         Checkpoint& checkpoint, Backend& backend)
      : model_(model),
        stage_(*member.stage),
        shard_(*member.shard),
        placement_(placement),
        head_dim_(model.head_dim()),
        norm_offset_(model.checkpoint_format() == "gguf" ? 0
                                                         : find_family(model.family()).norm_offset),
        plan_(model, shard_, checkpoint),
        checkpoint_(checkpoint),
        backend_(backend),
        kept_(checkpoint) {
    weights_.layers.resize(static_cast<size_t>(length(stage_.layers())));
    for (Slot slot : outer_slots(model_, stage_)) {
      if (slot == Slot::kEmbedding) add(slot, 0, weights_.embedding, Matrix::kEmbedding);
      if (slot == Slot::kHead) add(slot, 0, weights_.head, Matrix::kHead);
      if (slot == Slot::kFinalNorm) add(slot, 0, weights_.final_norm);
    }
    for (int32_t layer = stage_.layers().begin(); layer < stage_.layers().end(); ++layer) {
      add_layer(layer);
    }
  }

  // Units of a part.
  void take(const Want& want, Units units, StoredRows stored) {
    if (!want.slot) return kept_.keep(want.slice, units, stored);
    Target& target = targets_.at({*want.slot, want.layer});
    if (target.matrix != nullptr) {
      fill(*target.matrix, want.slice, units, stored);
    } else {
      fill(target.values, want.slice, units, stored);
    }
  }

  // All parts have come.
  Weights finish() {
    for (auto& [place, target] : targets_) {
      if (target.vector == nullptr) continue;
      if (is_norm(place.first)) {
        for (float& value : target.values) value += norm_offset_;
      }
      const size_t bytes = target.values.size() * sizeof(float);
      *target.vector = backend_.allocate(bytes);
      backend_.upload(target.vector->data(), target.values.data(), bytes);
      backend_.synchronize();  // the values end here
      weights_.bytes += target.vector->bytes();
    }
    std::vector<Buffer> prefixes = load_prefixes(model_, stage_, shard_, cache_dtype(placement_),
                                                 checkpoint_, kept_, backend_);
    for (size_t index = 0; index < prefixes.size(); ++index) {
      weights_.bytes += prefixes[index].bytes();
      weights_.layers[index].prefix = std::move(prefixes[index]);
    }
    return std::move(weights_);
  }

 private:
  void add(Slot slot, int32_t layer, Weight& weight, Matrix matrix) {
    const DType dtype = weight_dtype(placement_, matrix, layer);
    weight = is_quantised(dtype)
                 ? backend_.make_quantised(dtype, plan_.rows(slot), plan_.cols(slot),
                                           plan_.first_col(slot), plan_.all_cols(slot))
                 : backend_.make_weight(dtype, plan_.rows(slot), plan_.cols(slot));
    weights_.bytes += weight.storage.bytes();
    targets_[{slot, layer}].matrix = &weight;
  }

  // fp32 whatever the matrices are: norms and biases are small.
  void add(Slot slot, int32_t layer, Buffer& vector) {
    Target& target = targets_[{slot, layer}];
    target.vector = &vector;
    target.values.resize(static_cast<size_t>(plan_.rows(slot)));
  }

  void add_layer(int32_t layer) {
    LayerWeights& weights = weights_.layers[static_cast<size_t>(layer - stage_.layers().begin())];
    for (Slot slot : layer_slots(model_, shard_)) {
      for (const MatrixPlace& place : kMatrices) {
        if (place.slot == slot) add(slot, layer, weights.*place.member, place.matrix);
      }
      for (const VectorPlace& place : kVectors) {
        if (place.slot == slot) add(slot, layer, weights.*place.member);
      }
    }
  }

  // Some MiB of rows at a time, in the serving type; what the backend is to quantise with all that
  // shares its scales.
  void fill(Weight& weight, const Slice& slice, Units units, StoredRows stored) {
    const bool quantised = is_quantised(weight.dtype);
    const DType dtype = quantised ? wide_type(*slice.tensor) : weight.dtype;
    const int64_t before = quantised ? slice.before : 0;
    const int64_t cols = before + slice.cols + (quantised ? slice.after : 0);
    const int64_t row_bytes = cols * element_size(dtype);
    const int64_t unit = slice.permuted ? head_dim_ : 1;  // whole heads are un-permuted
    const int64_t chunk = std::max<int64_t>(kChunkBytes / (row_bytes * unit), 1) * unit;
    for (int64_t row = units.begin; row < units.end(); row += chunk) {
      const Tensor out = rows_to_pack(dtype, std::min(chunk, units.end() - row), cols);
      convert(slice, row, stored, slice.col - before, out);
      backend_.pack_rows(weight, slice.local + row - slice.row, out);
      stored.data += chunk * stored.stride;
    }
  }

  Tensor rows_to_pack(DType dtype, int64_t rows, int64_t cols) {
    Tensor out = backend_.rows_to_pack(dtype, rows, cols);
    if (out.data != nullptr) return out;
    scratch_.resize(static_cast<size_t>(rows * cols * element_size(dtype)));
    return {scratch_.data(), dtype, rows, cols};
  }

  // From column `col` on, some rows on each thread.
  void convert(const Slice& slice, int64_t row, const StoredRows& stored, int64_t col,
               const Tensor& out) {
    const int64_t unit = slice.permuted ? head_dim_ : 1;
    const int64_t row_bytes = out.stride * element_size(out.dtype);
    const int64_t share = std::max<int64_t>(kShareBytes / (row_bytes * unit), 1) * unit;
    parallel_try(backend_.team(), (out.rows + share - 1) / share, [&](int64_t index) {
      const int64_t first = index * share;
      const Tensor some = out.row_range(first, std::min(share, out.rows - first));
      const StoredRows from{stored.data + first * stored.stride, stored.stride, stored.col};
      checkpoint_.convert(*slice.tensor, row + first, from, col, some);
      if (slice.permuted) {
        unpermute(static_cast<std::byte*>(some.data), some.rows, row_bytes, head_dim_);
      }
    });
  }

  // The values of a vector come one by one or, if they are stored in blocks, all at once.
  void fill(std::vector<float>& values, const Slice& slice, Units units, StoredRows stored) {
    const bool whole = slice.tensor->units() == 1;
    const int64_t col = whole ? slice.col : units.begin;
    const int64_t count = whole ? slice.cols : units.count;
    float* target = values.data() + slice.local + (col - slice.col);
    checkpoint_.convert(*slice.tensor, 0, stored, col, Tensor(target, DType::kF32, 1, count));
    if (slice.permuted) {
      unpermute(reinterpret_cast<std::byte*>(target), count, sizeof(float), head_dim_);
    }
  }

  const ModelSpec& model_;
  const StageSpec& stage_;
  const ShardSpec& shard_;
  const Placement& placement_;
  const int64_t head_dim_;
  const float norm_offset_;
  const SlicePlan plan_;
  Checkpoint& checkpoint_;
  Backend& backend_;
  Weights weights_;
  std::map<std::pair<Slot, int32_t>, Target> targets_;
  KeptTensors kept_;
  std::vector<std::byte> scratch_;
};

// The digest of each tensor, whose bytes come in order.
class Hasher {
 public:
  void add(const TensorInfo& tensor, const std::string& file, std::span<const std::byte> bytes,
           bool last) {
    if (!digest_) digest_.emplace();
    digest_->add(bytes);
    if (!last) return;
    TensorDigest& result = *digests_.add_digests();
    result.set_tensor(tensor.name);
    result.set_file(std::filesystem::path(file).filename().string());
    result.set_sha256(digest_->hex());
    result.set_bytes(tensor.bytes);
    digest_.reset();
  }
  TensorDigests take() { return std::move(digests_); }

 private:
  std::optional<Digest> digest_;
  TensorDigests digests_;
};

}  // namespace

Weights load_weights(const ModelSpec& model, const Placement& placement, const ReadPlan& plan,
                     int member, Communicator* group, Checkpoint& checkpoint, Backend& backend,
                     const LoadProgressFunction& progress) {
  Loader loader(model, plan.members()[static_cast<size_t>(member)], placement, checkpoint, backend);
  Hasher hasher;
  uint64_t done = 0;
  uint64_t reported = 0;
  ReadSinks sinks;
  sinks.take = [&](const Want& want, Units units, StoredRows stored) {
    loader.take(want, units, stored);
  };
  sinks.advance = [&](uint64_t bytes) {
    done += bytes;
    if (!progress || done - reported < kReportBytes) return;
    reported = done;
    progress(done);
  };
  if (plan.everything()) {
    sinks.hear = [&](const TensorInfo& tensor, std::span<const std::byte> bytes, bool last) {
      hasher.add(tensor, checkpoint.file_of(tensor), bytes, last);
    };
  }
  read_together(plan, member, group, checkpoint, backend.team(), sinks);
  Weights weights = loader.finish();
  weights.digests = hasher.take();
  weights.node_bytes = plan.read_bytes();
  if (progress) progress(done);
  return weights;
}

Weights load_weights(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                     const Placement& placement, Checkpoint& checkpoint, Backend& backend,
                     const LoadProgressFunction& progress) {
  const ReadPlan plan(model, {{&stage, &shard}}, checkpoint, false);
  return load_weights(model, placement, plan, 0, nullptr, checkpoint, backend, progress);
}

uint64_t checkpoint_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Checkpoint& checkpoint) {
  return ReadPlan(model, {{&stage, &shard}}, checkpoint, false).work_bytes(0);
}

}  // namespace trireme
