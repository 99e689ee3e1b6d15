// SPDX-License-Identifier: Apache-2.0
#include "worker/model/config.h"

#include <filesystem>
#include <string_view>

#include "kernels/base/error.h"

namespace trireme {
namespace {

[[noreturn]] void fail(const std::string& source, const std::string& what) {
  throw Error(Code::kInvalidArgument, source + ": " + what);
}

// A module is called as its weight is, without the last part.
std::string module_of(const ModelFamily& family, Slot slot) {
  for (const WeightRule& rule : family.safetensors) {
    if (rule.slot != slot) continue;
    const std::string_view name = rule.name;
    return std::string(name.substr(0, name.rfind('.')));
  }
  return "";
}

void add_module(const std::string& name, int64_t parameters, ModelSpec& spec) {
  ModuleSpec* entry = spec.add_modules();
  entry->set_name(name);
  entry->set_parameters(static_cast<uint64_t>(parameters));
}

// A family's rules name biases that not every model of it has.
bool has_tensor(const ModelSpec& spec, Slot slot) {
  if (slot == Slot::kQkvBias) return spec.qkv_bias();
  if (slot == Slot::kAttentionOutBias) return spec.attention_out_bias();
  if (slot == Slot::kGateUpBias || slot == Slot::kDownBias) return spec.mlp_bias();
  return true;
}

void list_layer_tensors(const ModelFamily& family, ModelSpec& spec) {
  const std::string prefix = std::string(family.layer_module) + ".";
  spec.clear_layer_tensors();
  for (const WeightRule& rule : family.safetensors) {
    const std::string name = rule.name;
    if (!name.starts_with(prefix) || !has_tensor(spec, rule.slot)) continue;
    spec.add_layer_tensors(name.substr(prefix.size()));
  }
  // Of each frequency there is one value, and a table of its own for layers with a window.
  const int64_t frequencies = (spec.rope().rotary_dim() + spec.local_rope().rotary_dim()) / 2;
  spec.mutable_rotary()->set_name(family.rotary_module);
  spec.mutable_rotary()->set_parameters(static_cast<uint64_t>(frequencies * family.rotary_copies));
  spec.set_rotary_index(family.rotary_first ? 1 : spec.modules_size() - 1);
}

// HF's names whatever the format, for they are what a device map is written in.
void list_modules(const ModelFamily& family, ModelSpec& spec) {
  const int64_t hidden = spec.hidden_size();
  const int64_t q = int64_t{spec.num_heads()} * spec.head_dim();
  const int64_t qkv = q + 2 * int64_t{spec.num_kv_heads()} * spec.head_dim();
  const int64_t table = int64_t{spec.vocab_size()} * hidden;
  const int64_t layer =
      qkv * hidden + (spec.qkv_bias() ? qkv : 0) + (spec.qk_norm() ? 2 * spec.head_dim() : 0) +
      hidden * q + (spec.attention_out_bias() ? hidden : 0) + 3 * hidden * spec.ffn_size() +
      (spec.mlp_bias() ? 2 * spec.ffn_size() + hidden : 0) + (spec.post_norms() ? 4 : 2) * hidden;
  spec.clear_modules();
  add_module(module_of(family, Slot::kEmbedding), table, spec);
  if (spec.prefix_length() > 0) {
    const int64_t width = int64_t{spec.num_layers()} * 2 * spec.num_kv_heads() * spec.head_dim();
    const int64_t mlp =
        int64_t{spec.prefix_hidden()} * (2 * width + 1) + (spec.prefix_hidden() > 0 ? width : 0);
    add_module(family.prefix_module, spec.prefix_length() * width + mlp, spec);
  }
  for (int32_t i = 0; i < spec.num_layers(); ++i) {
    add_module(tensor_name({family.layer_module, Slot::kQkv, {}}, i), layer, spec);
  }
  add_module(module_of(family, Slot::kFinalNorm), hidden, spec);
  add_module(module_of(family, Slot::kHead), spec.tied_embeddings() ? 0 : table, spec);
  list_layer_tensors(family, spec);
}

void check_rope(const std::string& source, int32_t head_dim, const RopeSpec& rope) {
  const int32_t rotary = rope.rotary_dim();
  if (rotary < 2 || rotary % 2 != 0 || rotary > head_dim) {
    fail(source,
         std::to_string(rotary) + " of " + std::to_string(head_dim) +
             " channels of a head rotate; an even number from 2 up to the head's is needed");
  }
  if (rope.scaling() != ROPE_SCALING_YARN) return;
  // Written so that NaN is refused.
  if (!(rope.base() > 1 && rope.factor() >= 1 && rope.beta_slow() > 0 &&
        rope.beta_fast() >= rope.beta_slow() && rope.original_context() > 0)) {
    fail(source,
         "the YaRN scaling of its rotary embedding has no meaning; a base over 1, a factor "
         "of 1 or more and beta_fast of at least beta_slow are needed");
  }
}

}  // namespace

void finish_spec(const ModelFamily& family, const std::string& source, ModelSpec& spec) {
  spec.set_family(family.name);
  spec.mutable_rope()->set_pairing(family.pairing);
  if (spec.num_kv_heads() > spec.num_heads() || spec.num_heads() % spec.num_kv_heads() != 0) {
    fail(source, std::to_string(spec.num_heads()) + " attention heads cannot share " +
                     std::to_string(spec.num_kv_heads()) + " key/value heads; a divisor is needed");
  }
  if (spec.head_dim() > kMaxHeadDim) {
    fail(source, "a head has " + std::to_string(spec.head_dim()) + " channels; at most " +
                     std::to_string(kMaxHeadDim) + " are possible");
  }
  check_rope(source, spec.head_dim(), spec.rope());
  if (spec.has_local_rope()) {
    spec.mutable_local_rope()->set_pairing(family.pairing);
    check_rope(source, spec.head_dim(), spec.local_rope());
  }
  if (!spec.windows().empty() && spec.windows_size() != spec.num_layers()) {
    fail(source, std::to_string(spec.windows_size()) + " windows are given for " +
                     std::to_string(spec.num_layers()) + " layers; one for each is needed");
  }
  for (int32_t id : spec.stop_ids()) {
    if (id >= spec.vocab_size()) {
      fail(source, "the end-of-text id " + std::to_string(id) + " is not in the vocabulary of " +
                       std::to_string(spec.vocab_size()));
    }
  }
  list_modules(family, spec);
}

ModelSpec read_model_spec(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error) ? read_hf_spec(path) : read_gguf_spec(path);
}

}  // namespace trireme
