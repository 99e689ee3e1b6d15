// SPDX-License-Identifier: Apache-2.0
// GLM-4 in HF's own classes: `glm` (GLM-4-9B-chat-hf) and `glm4` (GLM-4-0414), which has norms of
// the branches' outputs besides. Llama's names, gate and up fused, and rotary embedding of
// neighbouring channels in half of each head.
#include <algorithm>

#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

void read_glm(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, {.head_dim = 128, .partial_rotary = 0.5}, spec);
  spec.set_qkv_bias(config.find_boolean("attention_bias").value_or(true));
}

void read_glm4(const ConfigJson& config, ModelSpec& spec) {
  read_glm(config, spec);
  spec.set_post_norms(true);
}

// Gate and up are one tensor.
std::vector<WeightRule> fused(std::vector<WeightRule> rules, const char* gate_up) {
  std::erase_if(rules, [](const WeightRule& rule) {
    return rule.slot == Slot::kGateUp || rule.slot == Slot::kGateUpBias;
  });
  rules.push_back({gate_up, Slot::kGateUp, {Segment::kGate, Segment::kUp}});
  return rules;
}

std::vector<WeightRule> glm_rules() {
  return fused(llama_safetensors_rules(), "model.layers.{}.mlp.gate_up_proj.weight");
}

std::vector<WeightRule> glm_gguf_rules() {
  return fused(llama_gguf_rules(), "blk.{}.ffn_up.weight");
}

// post_attention_layernorm is the norm before the FFN here too, its name notwithstanding.
std::vector<WeightRule> post_norm_rules() {
  return {
      {"model.layers.{}.post_self_attn_layernorm.weight",
       Slot::kPostAttentionNorm,
       {Segment::kWhole}},
      {"model.layers.{}.post_mlp_layernorm.weight", Slot::kPostMlpNorm, {Segment::kWhole}},
  };
}

}  // namespace

const ModelFamily kGlm = {
    .name = "glm",
    .pairing = ROPE_PAIRING_ADJACENT,
    .read_config = read_glm,
    .safetensors = glm_rules(),
    .gguf = glm_gguf_rules(),  // of files that call themselves "chatglm"
    .layer_module = "model.layers.{}",
};

const ModelFamily kGlm4 = {
    .name = "glm4",
    .pairing = ROPE_PAIRING_ADJACENT,
    .read_config = read_glm4,
    .safetensors = joined(glm_rules(), post_norm_rules()),
    .gguf = joined(glm_gguf_rules(), post_norm_gguf_rules()),
    .layer_module = "model.layers.{}",
};

}  // namespace trireme
