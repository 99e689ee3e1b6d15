// SPDX-License-Identifier: Apache-2.0
// GLM-4 in HF's own class (`glm`, GLM-4-9B-chat-hf): Llama's names, gate and up fused, and rotary
// embedding of neighbouring channels in half of each head.
#include <algorithm>

#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

void read_config(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, 0.5, spec);
  spec.set_qkv_bias(config.find_boolean("attention_bias").value_or(false));
}

std::vector<WeightRule> safetensors_rules() {
  std::vector<WeightRule> rules = llama_safetensors_rules();
  std::erase_if(rules, [](const WeightRule& rule) { return rule.slot == Slot::kGateUp; });
  rules.push_back(
      {"model.layers.{}.mlp.gate_up_proj.weight", Slot::kGateUp, {Segment::kGate, Segment::kUp}});
  return rules;
}

}  // namespace

const ModelFamily kGlm = {
    .name = "glm",
    .pairing = ROPE_PAIRING_ADJACENT,
    .read_config = read_config,
    .safetensors = safetensors_rules(),
    .gguf = {},  // llama.cpp writes these models as "chatglm"
    .gguf_permutes_qk = false,
    .layer_module = "model.layers.{}",
};

}  // namespace trireme
