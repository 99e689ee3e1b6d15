// SPDX-License-Identifier: Apache-2.0
// ChatGLM2, ChatGLM3 and GLM-4-9B-chat in the form of their authors: fused query|key|value and
// gate|up, rotary embedding of neighbouring channels in half of each head.
#include <algorithm>
#include <cctype>

#include "worker/model/config.h"
#include "worker/model/config_json.h"
#include "worker/model/families.h"

namespace trireme {
namespace {

// What the authors' class takes where the config is silent.
bool flag(const ConfigJson& config, const char* key, bool silent) {
  return config.find_boolean(key).value_or(silent);
}

void require(const ConfigJson& config, const char* key, bool silent, bool needed) {
  if (flag(config, key, silent) != needed) {
    config.refuse(key, needed ? "only true is supported" : "only false is supported");
  }
}

void refuse_unsupported(const ConfigJson& config) {
  require(config, "rmsnorm", true, true);
  require(config, "post_layer_norm", true, true);  // there is a norm before the head
  require(config, "apply_residual_connection_post_layernorm", false, false);
  require(config, "add_bias_linear", false, false);
  require(config, "interleaved_qkv", false, false);
  if (config.find_integer("quantization_bit", 0, 32).value_or(0) != 0) {
    config.refuse("quantization_bit", "plain fp32, bf16 or fp16 weights are supported");
  }
}

// rope_ratio divides the positions in the code of ChatGLM2, and multiplies the base in that of
// ChatGLM3 and GLM-4. Nothing in a config tells the two 6B models from each other but the name of
// the repository that it came from; GLM-4 has a larger vocabulary.
void read_rope(const ConfigJson& config, ModelSpec& spec) {
  constexpr int32_t kVocabOf6b = 65024;
  RopeSpec& rope = *spec.mutable_rope();
  rope.set_base(10000);
  rope.set_rotary_dim(spec.head_dim() / 2);
  const double ratio = config.find_number("rope_ratio", 1e-3, kMaxRopeFactor).value_or(1);
  if (ratio == 1) return;
  std::string origin = config.find_string("_name_or_path").value_or("");
  std::transform(origin.begin(), origin.end(), origin.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  const auto says = [&](const char* part) { return origin.find(part) != std::string::npos; };
  if (says("chatglm2")) {
    rope.set_scaling(ROPE_SCALING_LINEAR);
    rope.set_factor(ratio);
  } else if (says("chatglm3") || says("glm-4") || says("glm4") || spec.vocab_size() > kVocabOf6b) {
    rope.set_base(10000 * ratio);
  } else {
    config.refuse(
        "rope_ratio",
        "_name_or_path must say what it means: chatglm2 divides positions by it, chatglm3 "
        "and glm-4 multiply the base by it");
  }
}

// P-tuning v2: keys and values in front of every layer's, as they are or through an MLP.
void read_prefix(const ConfigJson& config, ModelSpec& spec) {
  const auto length = config.find_integer("pre_seq_len", 0, kMaxContext).value_or(0);
  spec.set_prefix_length(static_cast<int32_t>(length));
  if (length > 0 && flag(config, "prefix_projection", false)) {
    spec.set_prefix_hidden(spec.hidden_size());
  }
}

void read_config(const ConfigJson& config, ModelSpec& spec) {
  refuse_unsupported(config);
  spec.set_num_layers(config.integer("num_layers", 1, kMaxLayers));
  spec.set_hidden_size(config.integer("hidden_size", 1, kMaxHidden));
  spec.set_num_heads(config.integer("num_attention_heads", 1, kMaxHeads));
  spec.set_num_kv_heads(flag(config, "multi_query_attention", false)
                            ? config.integer("multi_query_group_num", 1, kMaxHeads)
                            : spec.num_heads());
  spec.set_head_dim(config.integer("kv_channels", 1, kMaxHeadDim));
  spec.set_ffn_size(config.integer("ffn_hidden_size", 1, kMaxFfn));
  spec.set_vocab_size(config.integer("padded_vocab_size", 1, kMaxVocab));
  spec.set_context_length(config.integer("seq_length", 1, kMaxContext));
  spec.set_norm_eps(config.number("layernorm_epsilon", kMinNormEps, kMaxNormEps));
  spec.set_qkv_bias(flag(config, "add_qkv_bias", false));
  spec.set_tied_embeddings(flag(config, "tie_word_embeddings", false));
  read_rope(config, spec);
  read_prefix(config, spec);
}

}  // namespace

const ModelFamily kChatglm = {
    .name = "chatglm",
    .pairing = ROPE_PAIRING_ADJACENT,
    .read_config = read_config,
    .safetensors =
        {
            {"transformer.embedding.word_embeddings.weight", Slot::kEmbedding, {Segment::kVocab}},
            {"transformer.encoder.layers.{}.input_layernorm.weight",
             Slot::kAttentionNorm,
             {Segment::kWhole}},
            {"transformer.encoder.layers.{}.self_attention.query_key_value.weight",
             Slot::kQkv,
             {Segment::kQ, Segment::kK, Segment::kV}},
            {"transformer.encoder.layers.{}.self_attention.query_key_value.bias",
             Slot::kQkvBias,
             {Segment::kQ, Segment::kK, Segment::kV}},
            {"transformer.encoder.layers.{}.self_attention.dense.weight",
             Slot::kAttentionOut,
             {Segment::kWhole}},
            {"transformer.encoder.layers.{}.post_attention_layernorm.weight",
             Slot::kMlpNorm,
             {Segment::kWhole}},
            {"transformer.encoder.layers.{}.mlp.dense_h_to_4h.weight",
             Slot::kGateUp,
             {Segment::kGate, Segment::kUp}},
            {"transformer.encoder.layers.{}.mlp.dense_4h_to_h.weight",
             Slot::kDown,
             {Segment::kWhole}},
            {"transformer.encoder.final_layernorm.weight", Slot::kFinalNorm, {Segment::kWhole}},
            {"transformer.output_layer.weight", Slot::kHead, {Segment::kVocab}},
        },
    .gguf =
        {
            {"token_embd.weight", Slot::kEmbedding, {Segment::kVocab}},
            {"blk.{}.attn_norm.weight", Slot::kAttentionNorm, {Segment::kWhole}},
            {"blk.{}.attn_qkv.weight", Slot::kQkv, {Segment::kQ, Segment::kK, Segment::kV}},
            {"blk.{}.attn_qkv.bias", Slot::kQkvBias, {Segment::kQ, Segment::kK, Segment::kV}},
            {"blk.{}.attn_output.weight", Slot::kAttentionOut, {Segment::kWhole}},
            {"blk.{}.ffn_norm.weight", Slot::kMlpNorm, {Segment::kWhole}},
            {"blk.{}.ffn_up.weight", Slot::kGateUp, {Segment::kGate, Segment::kUp}},
            {"blk.{}.ffn_down.weight", Slot::kDown, {Segment::kWhole}},
            {"output_norm.weight", Slot::kFinalNorm, {Segment::kWhole}},
            {"output.weight", Slot::kHead, {Segment::kVocab}},
        },
    .layer_module = "transformer.encoder.layers.{}",
    .prefix_module = "transformer.prefix_encoder",
    .rotary_module = "transformer.rotary_pos_emb",
    .rotary_copies = 1,
    .rotary_first = true,
};

}  // namespace trireme
