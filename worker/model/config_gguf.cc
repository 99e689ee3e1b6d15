// SPDX-License-Identifier: Apache-2.0
// The configuration in the metadata of a GGUF file, under the keys of llama.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numbers>

#include "kernels/base/error.h"
#include "worker/model/config.h"
#include "worker/model/gguf.h"
#include "worker/model/quant.h"

namespace trireme {
namespace {

// Metadata of the file's architecture: "block_count" means "llama.block_count".
class Metadata {
 public:
  Metadata(const GgufFile& file, const std::string& architecture)
      : file_(file), prefix_(architecture + ".") {}

  [[noreturn]] void refuse(const std::string& key, const std::string& found,
                           const std::string& needed) const {
    throw Error(Code::kInvalidArgument,
                file_.file().path() + ": " + key + " is " + found + "; " + needed);
  }

  // fallback < 0: the key must be there.
  int32_t integer(const char* name, int32_t min, int32_t max, int32_t fallback = -1) const {
    const std::string key = prefix_ + name;
    const auto value = file_.integer(key);
    if (!value && fallback >= 0) return fallback;
    if (!value || *value < min || *value > max) {
      refuse(
          key, value ? std::to_string(*value) : "missing",
          "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " is needed");
    }
    return static_cast<int32_t>(*value);
  }

  // fallback NaN: the key must be there.
  double number(const char* name, double min, double max, double fallback) const {
    const std::string key = prefix_ + name;
    const auto value = file_.number(key);
    if (!value && !std::isnan(fallback)) return fallback;
    if (!value || !(*value >= min && *value <= max)) {
      refuse(key, value ? std::to_string(*value) : "missing",
             "a number from " + std::to_string(min) + " to " + std::to_string(max) + " is needed");
    }
    return *value;
  }

  std::string string(const char* name) const { return file_.string(prefix_ + name).value_or(""); }

  // A setting that no family here has; zero means that it is off.
  void require_absent(const char* name, const char* needed) const {
    const auto value = file_.integer(prefix_ + name);
    if (value.value_or(0) != 0) refuse(prefix_ + name, std::to_string(*value), needed);
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

bool is_type(const GgufTensor& tensor, const char* name) {
  return std::strcmp(find_ggml_type(tensor.type)->name, name) == 0;
}

// ---- rotary embedding ----

// What Llama 3.1's scaling divides the frequency of channel pair i by.
double llama3_divisor(const RopeSpec& rope, int32_t i) {
  const double frequency = std::pow(rope.base(), -2.0 * i / rope.rotary_dim());
  const double turns = rope.original_context() * frequency / (2 * std::numbers::pi);
  if (turns > rope.high_freq_factor()) return 1;
  if (turns < rope.low_freq_factor()) return rope.factor();
  const double blend =
      (turns - rope.low_freq_factor()) / (rope.high_freq_factor() - rope.low_freq_factor());
  return 1 / ((1 - blend) / rope.factor() + blend);
}

bool gives_divisors(const RopeSpec& rope, const std::vector<float>& divisors) {
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double expected = llama3_divisor(rope, static_cast<int32_t>(i));
    // Written so that NaN is refused.
    if (!(std::abs(divisors[i] - expected) <= 1e-3 * expected)) return false;
  }
  return true;
}

// GGUF keeps no parameters of Llama 3's scaling, only its divisors. The published models differ in
// factor and original context, so those that give the stored divisors are looked for.
void read_llama3_divisors(const GgufFile& file, const Metadata& metadata, RopeSpec& rope) {
  constexpr const char* kName = "rope_freqs.weight";
  const auto entry = file.tensors().find(kName);
  if (entry == file.tensors().end()) return;
  const int32_t pairs = rope.rotary_dim() / 2;
  const GgufTensor& tensor = entry->second;
  if (tensor.shape != std::vector<int64_t>{pairs} || !is_type(tensor, "F32")) {
    metadata.refuse(kName, "of another shape or type",
                    "F32 [" + std::to_string(pairs) + "] is needed");
  }
  std::vector<float> divisors(pairs);
  std::memcpy(divisors.data(), file.file().data() + tensor.offset, pairs * sizeof(float));
  rope.set_scaling(ROPE_SCALING_LLAMA3);
  rope.set_factor(divisors.empty() ? 1 : *std::max_element(divisors.begin(), divisors.end()));
  rope.set_low_freq_factor(1);
  rope.set_high_freq_factor(4);
  for (int32_t context = 64; context <= kMaxContext; context *= 2) {
    rope.set_original_context(context);
    if (gives_divisors(rope, divisors)) return;
  }
  metadata.refuse(kName, "not the scaling of Llama 3", "no other divisors are supported");
}

void read_rope(const GgufFile& file, const Metadata& metadata, ModelSpec& spec) {
  RopeSpec& rope = *spec.mutable_rope();
  rope.set_base(metadata.number("rope.freq_base", kMinRopeBase, kMaxRopeBase, 10000));
  rope.set_rotary_dim(metadata.integer("rope.dimension_count", 1, kMaxHeadDim, spec.head_dim()));
  const std::string scaling = metadata.string("rope.scaling.type");
  double factor = 1;
  if (scaling == "linear") {
    factor = metadata.number("rope.scaling.factor", 1, kMaxRopeFactor, NAN);
  } else if (scaling.empty()) {
    factor = metadata.number("rope.scale_linear", 1, kMaxRopeFactor, 1);  // the older key
  } else if (scaling != "none") {
    metadata.refuse(spec.family() + ".rope.scaling.type", scaling.substr(0, 80),
                    "none or linear is supported");
  }
  if (factor != 1) {
    rope.set_scaling(ROPE_SCALING_LINEAR);
    rope.set_factor(factor);
  }
  read_llama3_divisors(file, metadata, rope);
}

// ---- the rest ----

const GgufTensor* find_tensor(const GgufFile& file, const ModelFamily& family, Slot slot) {
  for (const WeightRule& rule : family.gguf) {
    const auto entry = file.tensors().find(tensor_name(rule, 0));
    if (rule.slot == slot && entry != file.tensors().end()) return &entry->second;
  }
  return nullptr;
}

void read_dimensions(const GgufFile& file, const ModelFamily& family, const Metadata& metadata,
                     ModelSpec& spec) {
  spec.set_num_layers(metadata.integer("block_count", 1, kMaxLayers));
  spec.set_hidden_size(metadata.integer("embedding_length", 1, kMaxHidden));
  spec.set_num_heads(metadata.integer("attention.head_count", 1, kMaxHeads));
  spec.set_num_kv_heads(
      metadata.integer("attention.head_count_kv", 1, kMaxHeads, spec.num_heads()));
  spec.set_head_dim(metadata.integer("attention.key_length", 1, kMaxHeadDim,
                                     spec.hidden_size() / spec.num_heads()));
  const int32_t value = metadata.integer("attention.value_length", 1, kMaxHeadDim, spec.head_dim());
  if (spec.head_dim() < 1 || value != spec.head_dim()) {
    metadata.refuse("attention.value_length", std::to_string(value),
                    "the length of keys, " + std::to_string(spec.head_dim()) + ", is needed");
  }
  spec.set_ffn_size(metadata.integer("feed_forward_length", 1, kMaxFfn));
  spec.set_context_length(metadata.integer("context_length", 1, kMaxContext));
  spec.set_norm_eps(
      metadata.number("attention.layer_norm_rms_epsilon", kMinNormEps, kMaxNormEps, NAN));
  const GgufTensor* embedding = find_tensor(file, family, Slot::kEmbedding);
  const int64_t rows = embedding != nullptr ? embedding->shape.front() : 0;
  if (rows < 1 || rows > kMaxVocab) {
    metadata.refuse("the embedding", std::to_string(rows) + " rows",
                    "1 to " + std::to_string(kMaxVocab) + " are needed");
  }
  spec.set_vocab_size(static_cast<int32_t>(rows));
  spec.set_tied_embeddings(find_tensor(file, family, Slot::kHead) == nullptr);
  spec.set_qkv_bias(find_tensor(file, family, Slot::kQkvBias) != nullptr);
}

// The serving type nearest to what the matrices are stored in.
const char* checkpoint_dtype(const GgufFile& file, const ModelFamily& family) {
  const GgufTensor* matrix = find_tensor(file, family, Slot::kAttentionOut);
  if (matrix != nullptr && is_type(*matrix, "F32")) return "fp32";
  if (matrix != nullptr && is_type(*matrix, "F16")) return "fp16";
  return "bf16";
}

void read_token_ids(const GgufFile& file, const Metadata& metadata, ModelSpec& spec) {
  const auto id = [&](const char* key) {
    const int64_t value = file.integer(key).value_or(-1);
    if (value < -1 || value >= spec.vocab_size()) {
      metadata.refuse(
          key, std::to_string(value),
          "an id of the vocabulary of " + std::to_string(spec.vocab_size()) + " is needed");
    }
    return static_cast<int32_t>(value);
  };
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const int32_t stop = id(key);
    const auto& known = spec.stop_ids();
    if (stop >= 0 && std::find(known.begin(), known.end(), stop) == known.end()) {
      spec.add_stop_ids(stop);
    }
  }
  spec.set_bos_id(id("tokenizer.ggml.bos_token_id"));
}

}  // namespace

ModelSpec read_gguf_spec(const std::string& path) {
  const GgufFile file(path);
  const std::string architecture = file.string("general.architecture").value_or("");
  const ModelFamily& family = find_family(architecture);
  const Metadata metadata(file, architecture);
  if (family.gguf.empty()) {
    metadata.refuse("general.architecture", architecture,
                    "this family is read from safetensors only");
  }
  if (file.integer("split.count").value_or(1) > 1) {
    metadata.refuse("split.count", std::to_string(*file.integer("split.count")),
                    "a single file is needed: join the parts with llama-gguf-split --merge");
  }
  metadata.require_absent("expert_count", "a model without experts is supported");
  metadata.require_absent("attention.sliding_window",
                          "attention over the whole context is supported");
  ModelSpec spec;
  spec.set_family(family.name);
  spec.set_name(std::filesystem::path(path).stem().string());
  spec.set_checkpoint_format("gguf");
  read_dimensions(file, family, metadata, spec);
  read_rope(file, metadata, spec);
  spec.set_checkpoint_dtype(checkpoint_dtype(file, family));
  read_token_ids(file, metadata, spec);
  if (family.gguf_permutes_qk && spec.rope().rotary_dim() != spec.head_dim()) {
    metadata.refuse("rope.dimension_count", std::to_string(spec.rope().rotary_dim()),
                    "all " + std::to_string(spec.head_dim()) + " channels of a head are needed");
  }
  finish_spec(family, path, spec);
  return spec;
}

}  // namespace trireme
