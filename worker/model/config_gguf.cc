// SPDX-License-Identifier: Apache-2.0
// The configuration in the metadata of a GGUF file, under the keys of llama.cpp. Some of what an
// architecture is, llama.cpp knows without a key: the table at the end says that.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "worker/model/config.h"
#include "worker/model/gguf_metadata.h"

namespace trireme {
namespace {

constexpr double kMaxScalar = 1e6;
constexpr double kGemma2ScoreCap = 50;  // where the file is silent
constexpr double kGemma2LogitCap = 30;
constexpr int32_t kGemma2Window = 4096;
constexpr double kGemma3LocalBase = 10000;

// ---- what all architectures say alike ----

const GgufTensor* find_tensor(const GgufSet& files, const ModelFamily& family, Slot slot) {
  for (const WeightRule& rule : family.gguf) {
    const GgufTensor* tensor = files.find(tensor_name(rule, 0)).tensor;
    if (rule.slot == slot && tensor != nullptr) return tensor;
  }
  return nullptr;
}

void read_dimensions(const GgufMetadata& metadata, const ModelFamily& family, ModelSpec& spec) {
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
  const GgufTensor* embedding = find_tensor(metadata.files(), family, Slot::kEmbedding);
  const int64_t rows = embedding != nullptr ? embedding->shape.front() : 0;
  if (rows < 1 || rows > kMaxVocab) {
    metadata.refuse("the embedding", std::to_string(rows) + " rows",
                    "1 to " + std::to_string(kMaxVocab) + " are needed");
  }
  spec.set_vocab_size(static_cast<int32_t>(rows));
}

// What a file has shows in its tensors.
void read_parts(const GgufSet& files, const ModelFamily& family, ModelSpec& spec) {
  const auto has = [&](Slot slot) { return find_tensor(files, family, slot) != nullptr; };
  spec.set_tied_embeddings(!has(Slot::kHead));
  spec.set_qkv_bias(has(Slot::kQkvBias));
  spec.set_attention_out_bias(has(Slot::kAttentionOutBias));
  spec.set_mlp_bias(has(Slot::kGateUpBias) || has(Slot::kDownBias));
}

// The serving type nearest to what the matrices are stored in.
const char* checkpoint_dtype(const GgufSet& files, const ModelFamily& family) {
  const GgufTensor* matrix = find_tensor(files, family, Slot::kAttentionOut);
  if (matrix != nullptr && is_type(*matrix, "F32")) return "fp32";
  if (matrix != nullptr && is_type(*matrix, "F16")) return "fp16";
  return "bf16";
}

void read_token_ids(const GgufMetadata& metadata, ModelSpec& spec) {
  const auto id = [&](const char* key) {
    const int64_t value = metadata.file().integer(key).value_or(-1);
    if (value < -1 || value >= spec.vocab_size()) {
      metadata.refuse(
          key, std::to_string(value),
          "an id of the vocabulary of " + std::to_string(spec.vocab_size()) + " is needed");
    }
    return static_cast<int32_t>(value);
  };
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    const int32_t stop = id(key);
    const auto& known = spec.stop_ids();
    if (stop >= 0 && std::find(known.begin(), known.end(), stop) == known.end()) {
      spec.add_stop_ids(stop);
    }
  }
  spec.set_bos_id(id("tokenizer.ggml.bos_token_id"));
}

// ---- windows ----

// Layers that slide where the file does not say which.
enum class Period : int32_t { kUnknown = -1, kAll = 0, kTwo = 2, kSix = 6 };

bool slides(const GgufMetadata& metadata, int32_t layer, Period silent) {
  constexpr const char* kName = "attention.sliding_window_pattern";
  if (!metadata.has(kName)) {
    if (silent == Period::kAll) return true;
    return (layer + 1) % static_cast<int32_t>(silent) != 0;
  }
  // A number n: every n-th layer sees all positions; or a flag for each layer.
  if (metadata.file().is_array(metadata.key(kName))) {
    const auto flags = metadata.file().integers(metadata.key(kName)).value();
    if (flags.size() != static_cast<size_t>(metadata.integer("block_count", 1, kMaxLayers))) {
      metadata.refuse(metadata.key(kName), std::to_string(flags.size()) + " flags",
                      "one for each layer is needed");
    }
    return flags[layer] != 0;
  }
  const int32_t period = metadata.integer(kName, 0, kMaxLayers);
  return period == 0 || (layer + 1) % period != 0;
}

void read_windows(const GgufMetadata& metadata, Period silent, int32_t silent_window,
                  ModelSpec& spec) {
  constexpr const char* kName = "attention.sliding_window";
  const int32_t window = metadata.integer(kName, 0, kMaxContext, silent_window);
  if (window == 0 || window >= spec.context_length()) return;
  if (silent == Period::kUnknown && !metadata.has("attention.sliding_window_pattern")) {
    metadata.refuse(metadata.key(kName), std::to_string(window),
                    "which layers have the window must be said: " +
                        metadata.key("attention.sliding_window_pattern") + " is needed");
  }
  for (int32_t layer = 0; layer < spec.num_layers(); ++layer) {
    spec.add_windows(slides(metadata, layer, silent) ? window : 0);
  }
}

// ---- architectures ----

void read_llama(const GgufMetadata& metadata, ModelSpec& spec) {
  read_windows(metadata, Period::kAll, 0, spec);  // Mistral 7B v0.1
}

void read_plain(const GgufMetadata& metadata, ModelSpec& spec) {
  read_windows(metadata, Period::kUnknown, 0, spec);
}

void read_qwen3(const GgufMetadata& metadata, ModelSpec& spec) {
  read_plain(metadata, spec);
  spec.set_qk_norm(true);
}

void read_glm4(const GgufMetadata& metadata, ModelSpec& spec) {
  read_plain(metadata, spec);
  spec.set_post_norms(true);
}

void read_gemma(const GgufMetadata& metadata, ModelSpec& spec) {
  read_plain(metadata, spec);
  spec.set_activation(ACTIVATION_GELU_TANH);
  spec.set_embedding_scale(std::sqrt(spec.hidden_size()));
}

// What Gemma 2 and 3 have in common. The models of 27 billion parameters, known by their number of
// layers, divide scores by another width than a head's.
void read_later_gemma(const GgufMetadata& metadata, Period period, int32_t window,
                      int32_t layers_of_27b, ModelSpec& spec) {
  spec.set_activation(ACTIVATION_GELU_TANH);
  spec.set_embedding_scale(std::sqrt(spec.hidden_size()));
  spec.set_post_norms(true);
  read_windows(metadata, period, window, spec);
  const int32_t width =
      spec.num_layers() == layers_of_27b ? spec.hidden_size() / spec.num_heads() : spec.head_dim();
  spec.set_attention_scale(1 / std::sqrt(double(width)));
}

void read_gemma2(const GgufMetadata& metadata, ModelSpec& spec) {
  read_later_gemma(metadata, Period::kTwo, kGemma2Window, 46, spec);
  spec.set_attention_softcap(
      metadata.number("attn_logit_softcapping", 0, kMaxScalar, kGemma2ScoreCap));
  spec.set_logit_softcap(
      metadata.number("final_logit_softcapping", 0, kMaxScalar, kGemma2LogitCap));
}

void read_gemma3(const GgufMetadata& metadata, ModelSpec& spec) {
  read_later_gemma(metadata, Period::kSix, 0, 62, spec);
  spec.set_qk_norm(true);
  spec.set_attention_softcap(metadata.number("attn_logit_softcapping", 0, kMaxScalar, 0));
  spec.set_logit_softcap(metadata.number("final_logit_softcapping", 0, kMaxScalar, 0));
  RopeSpec& local = *spec.mutable_local_rope();  // never scaled
  local.set_base(
      metadata.number("rope.freq_base_swa", kMinRopeBase, kMaxRopeBase, kGemma3LocalBase));
  local.set_rotary_dim(spec.rope().rotary_dim());
}

struct Architecture {
  const char* name;
  void (*read)(const GgufMetadata& metadata, ModelSpec& spec);
};
constexpr Architecture kArchitectures[] = {
    {"llama", read_llama},   {"gemma", read_gemma}, {"gemma2", read_gemma2},
    {"gemma3", read_gemma3}, {"glm4", read_glm4},   {"qwen3", read_qwen3},
};

void read_architecture(const GgufMetadata& metadata, const std::string& name, ModelSpec& spec) {
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture.read(metadata, spec);
  }
  read_plain(metadata, spec);
}

// Settings that change the mathematics and that nothing here has.
void refuse_unsupported(const GgufMetadata& metadata) {
  for (const char* name : {"expert_count", "expert_used_count"}) {
    const int32_t count = metadata.integer(name, 0, kMaxFfn, 0);
    if (count == 0) continue;
    metadata.refuse(metadata.key(name), std::to_string(count),
                    "a model without experts is supported");
  }
  for (const char* name : {"attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale",
                           "residual_scale", "embedding_scale"}) {
    if (!metadata.has(name)) continue;
    metadata.refuse(metadata.key(name), "there", "no such setting is supported");
  }
  if (!metadata.file().boolean(metadata.key("attention.causal")).value_or(true)) {
    metadata.refuse(metadata.key("attention.causal"), "false", "causal attention is supported");
  }
}

// "chatglm" files come from two checkpoints: ChatGLM's own, whose query, key and value are one
// tensor, and HF's `glm`, which has them apart.
const ModelFamily& family_of(const GgufSet& files, const std::string& architecture) {
  const bool apart = files.find("blk.0.attn_q.weight").tensor != nullptr;
  return find_family(architecture == "chatglm" && apart ? "glm" : architecture);
}

}  // namespace

ModelSpec read_gguf_spec(const std::string& path) {
  const GgufSet files(path);
  const std::string architecture = files.metadata().string("general.architecture").value_or("");
  const ModelFamily& family = family_of(files, architecture);
  const GgufMetadata metadata(files, architecture);
  if (family.gguf.empty()) {
    metadata.refuse("general.architecture", architecture,
                    "this family is read from safetensors only");
  }
  refuse_unsupported(metadata);
  ModelSpec spec;
  spec.set_name(std::filesystem::path(path).stem().string());
  spec.set_checkpoint_format("gguf");
  read_dimensions(metadata, family, spec);
  read_parts(files, family, spec);
  read_gguf_rope(metadata, spec);
  read_architecture(metadata, architecture, spec);
  // For files that say it; llama.cpp's own architectures above do not.
  if (metadata.has("attention.scale")) {
    spec.set_attention_scale(metadata.number("attention.scale", 1e-6, kMaxScalar, NAN));
  }
  spec.set_checkpoint_dtype(checkpoint_dtype(files, family));
  read_token_ids(metadata, spec);
  if (family.gguf_permutes_qk && spec.rope().rotary_dim() != spec.head_dim()) {
    metadata.refuse("rope.dimension_count", std::to_string(spec.rope().rotary_dim()),
                    "all " + std::to_string(spec.head_dim()) + " channels of a head are needed");
  }
  finish_spec(family, path, spec);
  return spec;
}

}  // namespace trireme
