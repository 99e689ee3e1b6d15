// SPDX-License-Identifier: Apache-2.0
// Gemma 1, 2 and 3 (text). Against Llama: embeddings multiplied by sqrt(H), norm weights stored
// less one, GELU in place of SiLU, tied embeddings. Gemma 2: norms of the branches' outputs, capped
// scores and logits, a window on every other layer. Gemma 3: norms of query and key heads, no caps,
// a window on five layers of six, and in those a rotary base of their own.
#include <algorithm>
#include <cmath>

#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

constexpr double kMaxScalar = 1e6;
const HfClass kClass = {
    .head_dim = 256, .activation = "gelu_pytorch_tanh", .tied_embeddings = true, .windows = true};

void read_gemma(const ConfigJson& config, const HfClass& hf, ModelSpec& spec) {
  read_hf_decoder(config, hf, spec);
  if (config.find_boolean("use_bidirectional_attention").value_or(false)) {
    config.refuse("use_bidirectional_attention", "causal attention is supported");
  }
  spec.set_qkv_bias(config.find_boolean("attention_bias").value_or(false));
  spec.set_attention_out_bias(spec.qkv_bias());
  spec.set_embedding_scale(std::sqrt(spec.hidden_size()));
}

// null is no cap; a config that says nothing has the class's.
double read_cap(const ConfigJson& config, const char* key, double silent) {
  if (!config.says(key)) return silent;
  return config.find_number(key, 1e-3, kMaxScalar).value_or(0);
}

// What Gemma 2 and 3 have in common. Every `period`-th layer sees all positions.
void read_later(const ConfigJson& config, const HfClass& hf, int64_t period, double score_cap,
                double logit_cap, ModelSpec& spec) {
  read_gemma(config, hf, spec);
  spec.set_post_norms(true);
  const double scalar = config.find_number("query_pre_attn_scalar", 1e-3, kMaxScalar).value_or(256);
  spec.set_attention_scale(1 / std::sqrt(scalar));
  spec.set_attention_softcap(read_cap(config, "attn_logit_softcapping", score_cap));
  spec.set_logit_softcap(read_cap(config, "final_logit_softcapping", logit_cap));
  const auto window = config.find_integer("sliding_window", 1, kMaxContext);
  std::vector<bool> slides;
  for (int32_t i = 0; i < spec.num_layers(); ++i) slides.push_back((i + 1) % period != 0);
  read_hf_windows(config, static_cast<int32_t>(window.value_or(4096)), slides, spec);
}

void read_gemma1(const ConfigJson& config, ModelSpec& spec) {
  HfClass hf = kClass;
  hf.windows = false;
  read_gemma(config, hf, spec);
}

void read_gemma2(const ConfigJson& config, ModelSpec& spec) {
  read_later(config, kClass, 2, 50, 30, spec);
}

void read_gemma3(const ConfigJson& config, ModelSpec& spec) {
  HfClass hf = kClass;
  hf.rope_base = 1e6;
  hf.local_rope = true;
  const auto period = config.find_integer("sliding_window_pattern", 1, kMaxLayers).value_or(6);
  read_later(config, hf, period, 0, 0, spec);
  spec.set_qk_norm(true);
}

// Here post_attention_layernorm is what its name says.
std::vector<WeightRule> later_rules() {
  std::vector<WeightRule> rules = llama_safetensors_rules();
  std::erase_if(rules, [](const WeightRule& rule) { return rule.slot == Slot::kMlpNorm; });
  return joined(
      rules,
      {
          {"model.layers.{}.post_attention_layernorm.weight",
           Slot::kPostAttentionNorm,
           {Segment::kWhole}},
          {"model.layers.{}.pre_feedforward_layernorm.weight", Slot::kMlpNorm, {Segment::kWhole}},
          {"model.layers.{}.post_feedforward_layernorm.weight",
           Slot::kPostMlpNorm,
           {Segment::kWhole}},
      });
}

std::vector<WeightRule> later_gguf_rules() {
  return joined(llama_gguf_rules(), post_norm_gguf_rules());
}

}  // namespace

const ModelFamily kGemma = {
    .name = "gemma",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_gemma1,
    .safetensors = llama_safetensors_rules(),
    .gguf = llama_gguf_rules(),
    .layer_module = "model.layers.{}",
    .norm_offset = 1,
};

const ModelFamily kGemma2 = {
    .name = "gemma2",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_gemma2,
    .safetensors = later_rules(),
    .gguf = later_gguf_rules(),
    .layer_module = "model.layers.{}",
    .norm_offset = 1,
};

const ModelFamily kGemma3 = {
    .name = "gemma3",
    .model_type = "gemma3_text",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_gemma3,
    .safetensors = joined(later_rules(), qk_norm_safetensors_rules()),
    .gguf = joined(later_gguf_rules(), qk_norm_gguf_rules()),
    .layer_module = "model.layers.{}",
    .norm_offset = 1,
};

}  // namespace trireme
