// SPDX-License-Identifier: Apache-2.0
// Llama 2 and 3, and the many models that are Llama by another name (SmolLM2).
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

void read_config(const ConfigJson& config, ModelSpec& spec) {
  read_hf_decoder(config, {}, spec);
  spec.set_qkv_bias(config.find_boolean("attention_bias").value_or(false));
  spec.set_attention_out_bias(spec.qkv_bias());
  spec.set_mlp_bias(config.find_boolean("mlp_bias").value_or(false));
}

}  // namespace

std::vector<WeightRule> llama_safetensors_rules() {
  return {
      {"model.embed_tokens.weight", Slot::kEmbedding, {Segment::kVocab}},
      {"model.layers.{}.input_layernorm.weight", Slot::kAttentionNorm, {Segment::kWhole}},
      {"model.layers.{}.self_attn.q_proj.weight", Slot::kQkv, {Segment::kQ}},
      {"model.layers.{}.self_attn.k_proj.weight", Slot::kQkv, {Segment::kK}},
      {"model.layers.{}.self_attn.v_proj.weight", Slot::kQkv, {Segment::kV}},
      {"model.layers.{}.self_attn.q_proj.bias", Slot::kQkvBias, {Segment::kQ}},
      {"model.layers.{}.self_attn.k_proj.bias", Slot::kQkvBias, {Segment::kK}},
      {"model.layers.{}.self_attn.v_proj.bias", Slot::kQkvBias, {Segment::kV}},
      {"model.layers.{}.self_attn.o_proj.weight", Slot::kAttentionOut, {Segment::kWhole}},
      {"model.layers.{}.self_attn.o_proj.bias", Slot::kAttentionOutBias, {Segment::kWhole}},
      {"model.layers.{}.post_attention_layernorm.weight", Slot::kMlpNorm, {Segment::kWhole}},
      {"model.layers.{}.mlp.gate_proj.weight", Slot::kGateUp, {Segment::kGate}},
      {"model.layers.{}.mlp.up_proj.weight", Slot::kGateUp, {Segment::kUp}},
      {"model.layers.{}.mlp.gate_proj.bias", Slot::kGateUpBias, {Segment::kGate}},
      {"model.layers.{}.mlp.up_proj.bias", Slot::kGateUpBias, {Segment::kUp}},
      {"model.layers.{}.mlp.down_proj.weight", Slot::kDown, {Segment::kWhole}},
      {"model.layers.{}.mlp.down_proj.bias", Slot::kDownBias, {Segment::kWhole}},
      {"model.norm.weight", Slot::kFinalNorm, {Segment::kWhole}},
      {"lm_head.weight", Slot::kHead, {Segment::kVocab}},
  };
}

std::vector<WeightRule> llama_gguf_rules() {
  return {
      {"token_embd.weight", Slot::kEmbedding, {Segment::kVocab}},
      {"blk.{}.attn_norm.weight", Slot::kAttentionNorm, {Segment::kWhole}},
      {"blk.{}.attn_q.weight", Slot::kQkv, {Segment::kQ}},
      {"blk.{}.attn_k.weight", Slot::kQkv, {Segment::kK}},
      {"blk.{}.attn_v.weight", Slot::kQkv, {Segment::kV}},
      {"blk.{}.attn_q.bias", Slot::kQkvBias, {Segment::kQ}},
      {"blk.{}.attn_k.bias", Slot::kQkvBias, {Segment::kK}},
      {"blk.{}.attn_v.bias", Slot::kQkvBias, {Segment::kV}},
      {"blk.{}.attn_output.weight", Slot::kAttentionOut, {Segment::kWhole}},
      {"blk.{}.attn_output.bias", Slot::kAttentionOutBias, {Segment::kWhole}},
      {"blk.{}.ffn_norm.weight", Slot::kMlpNorm, {Segment::kWhole}},
      {"blk.{}.ffn_gate.weight", Slot::kGateUp, {Segment::kGate}},
      {"blk.{}.ffn_up.weight", Slot::kGateUp, {Segment::kUp}},
      {"blk.{}.ffn_gate.bias", Slot::kGateUpBias, {Segment::kGate}},
      {"blk.{}.ffn_up.bias", Slot::kGateUpBias, {Segment::kUp}},
      {"blk.{}.ffn_down.weight", Slot::kDown, {Segment::kWhole}},
      {"blk.{}.ffn_down.bias", Slot::kDownBias, {Segment::kWhole}},
      {"output_norm.weight", Slot::kFinalNorm, {Segment::kWhole}},
      {"output.weight", Slot::kHead, {Segment::kVocab}},
  };
}

std::vector<WeightRule> qk_norm_safetensors_rules() {
  return {
      {"model.layers.{}.self_attn.q_norm.weight", Slot::kQNorm, {Segment::kHeadDim}},
      {"model.layers.{}.self_attn.k_norm.weight", Slot::kKNorm, {Segment::kHeadDim}},
  };
}

std::vector<WeightRule> qk_norm_gguf_rules() {
  return {
      {"blk.{}.attn_q_norm.weight", Slot::kQNorm, {Segment::kHeadDim}},
      {"blk.{}.attn_k_norm.weight", Slot::kKNorm, {Segment::kHeadDim}},
  };
}

std::vector<WeightRule> post_norm_gguf_rules() {
  return {
      {"blk.{}.post_attention_norm.weight", Slot::kPostAttentionNorm, {Segment::kWhole}},
      {"blk.{}.post_ffw_norm.weight", Slot::kPostMlpNorm, {Segment::kWhole}},
  };
}

const ModelFamily kLlama = {
    .name = "llama",
    .pairing = ROPE_PAIRING_HALF,
    .read_config = read_config,
    .safetensors = llama_safetensors_rules(),
    .gguf = llama_gguf_rules(),
    .gguf_permutes_qk = true,
    .layer_module = "model.layers.{}",
};

}  // namespace trireme
