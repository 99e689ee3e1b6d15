// SPDX-License-Identifier: Apache-2.0
#include "worker/model/slices.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "topology/shard.h"

namespace trireme {
namespace {

// The order of rows in the slot, whatever their order in the checkpoint.
std::vector<Segment> segments_of(Slot slot) {
  switch (slot) {
    case Slot::kQkv:
    case Slot::kQkvBias: return {Segment::kQ, Segment::kK, Segment::kV};
    case Slot::kGateUp:
    case Slot::kGateUpBias: return {Segment::kGate, Segment::kUp};
    case Slot::kEmbedding:
    case Slot::kHead: return {Segment::kVocab};
    case Slot::kQNorm:
    case Slot::kKNorm: return {Segment::kHeadDim};
    default: return {Segment::kWhole};
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

bool contains(const std::vector<Slot>& slots, Slot slot) {
  return std::find(slots.begin(), slots.end(), slot) != slots.end();
}

}  // namespace

Units units_of(const Slice& slice) {
  const TensorInfo& tensor = *slice.tensor;
  if (slice.rows == 0 || slice.cols == 0) return {};
  if (tensor.shape.size() == 2) return {slice.row, slice.rows};
  return tensor.units() > 1 ? Units{slice.col, slice.cols} : Units{0, tensor.units()};
}

bool is_norm(Slot slot) {
  return contains({Slot::kAttentionNorm, Slot::kQNorm, Slot::kKNorm, Slot::kPostAttentionNorm,
                   Slot::kMlpNorm, Slot::kPostMlpNorm, Slot::kFinalNorm},
                  slot);
}

bool is_vector(Slot slot) {
  return is_norm(slot) ||
         contains({Slot::kQkvBias, Slot::kAttentionOutBias, Slot::kGateUpBias, Slot::kDownBias},
                  slot);
}

std::vector<Slot> outer_slots(const ModelSpec& model, const StageSpec& stage) {
  const bool tied = model.tied_embeddings();
  std::vector<Slot> slots;
  if (stage.has_embedding() || (stage.has_head() && tied)) slots.push_back(Slot::kEmbedding);
  if (stage.has_head()) slots.push_back(Slot::kFinalNorm);
  if (stage.has_head() && !tied) slots.push_back(Slot::kHead);
  return slots;
}

std::vector<Slot> layer_slots(const ModelSpec& model, const ShardSpec& shard) {
  // A branch's bias must count once in the sum over the group.
  const bool first = shard.tp_rank() == 0;
  const std::pair<Slot, bool> all[] = {
      {Slot::kAttentionNorm, true},
      {Slot::kQkv, true},
      {Slot::kQkvBias, model.qkv_bias()},
      {Slot::kQNorm, model.qk_norm()},
      {Slot::kKNorm, model.qk_norm()},
      {Slot::kAttentionOut, true},
      {Slot::kAttentionOutBias, model.attention_out_bias() && first},
      {Slot::kPostAttentionNorm, model.post_norms()},
      {Slot::kMlpNorm, true},
      {Slot::kGateUp, true},
      {Slot::kGateUpBias, model.mlp_bias()},
      {Slot::kDown, true},
      {Slot::kDownBias, model.mlp_bias() && first},
      {Slot::kPostMlpNorm, model.post_norms()},
  };
  std::vector<Slot> slots;
  for (const auto& [slot, present] : all) {
    if (present) slots.push_back(slot);
  }
  return slots;
}

SlicePlan::SlicePlan(const ModelSpec& model, const ShardSpec& shard, const Checkpoint& checkpoint)
    : model_(model),
      shard_(shard),
      checkpoint_(checkpoint),
      permutes_qk_(model.checkpoint_format() == "gguf" &&
                   find_family(model.family()).gguf_permutes_qk) {}

int64_t SlicePlan::rows(Slot slot) const {
  int64_t rows = 0;
  for (Segment segment : segments_of(slot)) rows += part(segment).size;
  return rows;
}

std::vector<Slice> SlicePlan::slices(Slot slot, int32_t layer) const {
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

SlicePlan::Part SlicePlan::part(Segment segment) const {
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
    case Segment::kHeadDim: return {model_.head_dim(), 0, model_.head_dim()};
    case Segment::kWhole: break;
  }
  return {model_.hidden_size(), 0, model_.hidden_size()};
}

SlicePlan::Part SlicePlan::columns(Slot slot) const {
  if (slot == Slot::kAttentionOut) return part(Segment::kQ);
  if (slot == Slot::kDown) return part(Segment::kUp);
  return part(Segment::kWhole);
}

Slice SlicePlan::slice(const TensorInfo& tensor, Slot slot, Segment segment, int64_t begin) const {
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
    slice.before = cols.begin % kQuantGroup;
    const int64_t end = cols.begin + cols.size;
    slice.after = std::min(round_up(end, kQuantGroup), cols.total) - end;
  }
  return slice;
}

const TensorInfo& SlicePlan::tensor(const std::string& name,
                                    const std::vector<int64_t>& shape) const {
  const TensorInfo* tensor = checkpoint_.find(name);
  if (tensor == nullptr || tensor->shape != shape) {
    throw Error(Code::kInvalidArgument,
                "cannot load " + model_.name() + ": tensor " + name + " is " +
                    (tensor == nullptr ? "missing" : "of shape " + shape_text(tensor->shape)) +
                    "; the config needs shape " + shape_text(shape));
  }
  return *tensor;
}

const TensorInfo& SlicePlan::find_tensor(const WeightRule& rule, int32_t layer) const {
  const std::string name = tensor_name(rule, layer);
  std::vector<int64_t> shape = {0};
  for (Segment segment : rule.segments) shape[0] += part(segment).total;
  if (!is_vector(rule.slot)) shape.push_back(columns(rule.slot).total);
  const TensorInfo& found = tensor(name, shape);
  refuse_unknown_bias(name, layer);
  return found;
}

// A bias beside a weight that has none in this family or with this config (an adapter's): to ignore
// it would give wrong tokens.
void SlicePlan::refuse_unknown_bias(const std::string& weight, int32_t layer) const {
  constexpr std::string_view kWeight = ".weight";
  if (!weight.ends_with(kWeight)) return;
  const std::string bias = weight.substr(0, weight.size() - kWeight.size()) + ".bias";
  if (checkpoint_.find(bias) == nullptr) return;
  ShardSpec first = shard_;  // which has every slot
  first.set_tp_rank(0);
  const std::vector<Slot> known = layer_slots(model_, first);
  for (const WeightRule& rule : weight_rules(model_)) {
    if (contains(known, rule.slot) && tensor_name(rule, layer) == bias) return;
  }
  throw Error(Code::kInvalidArgument, "cannot load " + model_.name() + ": tensor " + bias +
                                          " is there, but " + model_.family() +
                                          " with this config has no such bias");
}

}  // namespace trireme
