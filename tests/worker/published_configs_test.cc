// SPDX-License-Identifier: Apache-2.0
// What the config.json of published models says, and how it must be read. Values are those of the
// public repositories; keys that mean nothing to us are left out.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/worker/model_files.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

using nlohmann::json;

ModelSpec read(const json& config) {
  const TemporaryFolder folder;
  folder.write("config.json", config.dump());
  return read_model_spec(folder.path());
}

// layers, hidden, heads, KV heads, head_dim, FFN, vocabulary, context, rotary channels
void expect_dimensions(const ModelSpec& spec, const std::vector<int32_t>& expected) {
  const std::vector<int32_t> found = {
      spec.num_layers(),   spec.hidden_size(),    spec.num_heads(),
      spec.num_kv_heads(), spec.head_dim(),       spec.ffn_size(),
      spec.vocab_size(),   spec.context_length(), spec.rope().rotary_dim()};
  EXPECT_EQ(found, expected);
}

// Everything that Llama 2 does not have; a test names what its model has.
void expect_plain_but(const ModelSpec& spec, const std::vector<std::string>& options) {
  const std::map<std::string, bool> found = {
      {"qkv_bias", spec.qkv_bias()},
      {"attention_out_bias", spec.attention_out_bias()},
      {"mlp_bias", spec.mlp_bias()},
      {"tied", spec.tied_embeddings()},
      {"qk_norm", spec.qk_norm()},
      {"post_norms", spec.post_norms()},
      {"windows", !spec.windows().empty()},
      {"local_rope", spec.has_local_rope()},
      {"gelu", spec.activation() == ACTIVATION_GELU_TANH},
      {"attention_scale", spec.attention_scale() != 0},
      {"attention_softcap", spec.attention_softcap() != 0},
      {"logit_softcap", spec.logit_softcap() != 0},
      {"embedding_scale", spec.embedding_scale() != 0},
      {"prefix", spec.prefix_length() != 0},
      {"scaling", spec.rope().scaling() != ROPE_SCALING_NONE},
      {"adjacent", spec.rope().pairing() == ROPE_PAIRING_ADJACENT},
  };
  for (const auto& [option, present] : found) {
    EXPECT_EQ(present, std::find(options.begin(), options.end(), option) != options.end())
        << option;
  }
}

json chatglm(const char* origin) {
  return {{"_name_or_path", origin},
          {"model_type", "chatglm"},
          {"add_bias_linear", false},
          {"add_qkv_bias", true},
          {"apply_query_key_layer_scaling", true},
          {"apply_residual_connection_post_layernorm", false},
          {"ffn_hidden_size", 13696},
          {"fp32_residual_connection", false},
          {"hidden_size", 4096},
          {"kv_channels", 128},
          {"layernorm_epsilon", 1e-5},
          {"multi_query_attention", true},
          {"multi_query_group_num", 2},
          {"num_attention_heads", 32},
          {"num_layers", 28},
          {"original_rope", true},
          {"padded_vocab_size", 65024},
          {"post_layer_norm", true},
          {"pre_seq_len", nullptr},
          {"prefix_projection", false},
          {"rmsnorm", true},
          {"seq_length", 32768},
          {"torch_dtype", "float16"},
          {"tie_word_embeddings", false},
          {"eos_token_id", 2}};
}

const std::vector<int32_t> kChatglm6b = {28, 4096, 32, 2, 128, 13696, 65024, 32768, 64};

TEST(Published, Chatglm2) {
  const ModelSpec spec = read(chatglm("THUDM/chatglm2-6b"));
  expect_dimensions(spec, kChatglm6b);
  expect_plain_but(spec, {"qkv_bias", "adjacent"});
  EXPECT_EQ(spec.rope().base(), 10000);
}

TEST(Published, Chatglm2With32kDividesPositions) {
  json config = chatglm("THUDM/chatglm2-6b-32k");
  config["rope_ratio"] = 16;
  const ModelSpec spec = read(config);
  expect_plain_but(spec, {"qkv_bias", "adjacent", "scaling"});
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_LINEAR);
  EXPECT_EQ(spec.rope().factor(), 16);
  EXPECT_EQ(spec.rope().base(), 10000);
}

TEST(Published, Chatglm3With32kMultipliesTheBase) {
  json config = chatglm("/models/ChatGLM3-6B-32k");
  config["rope_ratio"] = 50;
  const ModelSpec spec = read(config);
  expect_plain_but(spec, {"qkv_bias", "adjacent"});
  EXPECT_EQ(spec.rope().base(), 500000);
}

TEST(Published, Glm4Chat) {
  for (const char* origin : {"THUDM/glm-4-9b-chat", "/data/tuned"}) {  // its vocabulary tells
    json config = chatglm(origin);
    config.update({{"num_layers", 40},
                   {"padded_vocab_size", 151552},
                   {"seq_length", 131072},
                   {"layernorm_epsilon", 1.5625e-7},
                   {"rope_ratio", 500},
                   {"torch_dtype", "bfloat16"},
                   {"eos_token_id", {151329, 151336, 151338}}});
    const ModelSpec spec = read(config);
    expect_dimensions(spec, {40, 4096, 32, 2, 128, 13696, 151552, 131072, 64});
    expect_plain_but(spec, {"qkv_bias", "adjacent"});
    EXPECT_EQ(spec.rope().base(), 5e6);
    EXPECT_FLOAT_EQ(spec.norm_eps(), 1.5625e-7);
    EXPECT_EQ(spec.stop_ids_size(), 3);
  }
}

TEST(Published, LearnedPrefix) {
  json config = chatglm("THUDM/chatglm3-6b");
  config["pre_seq_len"] = 128;
  ModelSpec spec = read(config);
  expect_plain_but(spec, {"qkv_bias", "adjacent", "prefix"});
  EXPECT_EQ(spec.prefix_length(), 128);
  EXPECT_EQ(spec.prefix_hidden(), 0);
  EXPECT_EQ(spec.modules(1).name(), "transformer.prefix_encoder");
  EXPECT_EQ(spec.modules(1).parameters(), 128u * 28 * 2 * 2 * 128);
  config["prefix_projection"] = true;
  spec = read(config);
  EXPECT_EQ(spec.prefix_hidden(), 4096);
  const uint64_t width = 28 * 2 * 2 * 128;
  EXPECT_EQ(spec.modules(1).parameters(),
            128 * width + (4096 * width + 4096) + (width * 4096 + width));
}

TEST(Published, Glm4Of0414) {
  const ModelSpec spec = read({{"model_type", "glm4"},
                               {"attention_bias", true},
                               {"eos_token_id", {151329, 151336, 151338}},
                               {"head_dim", 128},
                               {"hidden_act", "silu"},
                               {"hidden_size", 4096},
                               {"intermediate_size", 13696},
                               {"max_position_embeddings", 32768},
                               {"num_attention_heads", 32},
                               {"num_hidden_layers", 40},
                               {"num_key_value_heads", 2},
                               {"partial_rotary_factor", 0.5},
                               {"rms_norm_eps", 1e-5},
                               {"rope_theta", 10000.0},
                               {"tie_word_embeddings", false},
                               {"torch_dtype", "bfloat16"},
                               {"vocab_size", 151552}});
  expect_dimensions(spec, {40, 4096, 32, 2, 128, 13696, 151552, 32768, 64});
  expect_plain_but(spec, {"qkv_bias", "adjacent", "post_norms"});
}

TEST(Published, Llama31) {
  const ModelSpec spec = read({{"model_type", "llama"},
                               {"attention_bias", false},
                               {"bos_token_id", 128000},
                               {"eos_token_id", {128001, 128008, 128009}},
                               {"hidden_act", "silu"},
                               {"hidden_size", 4096},
                               {"intermediate_size", 14336},
                               {"max_position_embeddings", 131072},
                               {"mlp_bias", false},
                               {"num_attention_heads", 32},
                               {"num_hidden_layers", 32},
                               {"num_key_value_heads", 8},
                               {"rms_norm_eps", 1e-5},
                               {"rope_scaling",
                                {{"factor", 8.0},
                                 {"low_freq_factor", 1.0},
                                 {"high_freq_factor", 4.0},
                                 {"original_max_position_embeddings", 8192},
                                 {"rope_type", "llama3"}}},
                               {"rope_theta", 500000.0},
                               {"tie_word_embeddings", false},
                               {"torch_dtype", "bfloat16"},
                               {"vocab_size", 128256}});
  expect_dimensions(spec, {32, 4096, 32, 8, 128, 14336, 128256, 131072, 128});
  expect_plain_but(spec, {"scaling"});
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_LLAMA3);
  EXPECT_EQ(spec.rope().original_context(), 8192);
}

json qwen25() {
  return {{"model_type", "qwen2"},
          {"bos_token_id", 151643},
          {"eos_token_id", 151645},
          {"hidden_act", "silu"},
          {"hidden_size", 3584},
          {"intermediate_size", 18944},
          {"max_position_embeddings", 32768},
          {"max_window_layers", 28},
          {"num_attention_heads", 28},
          {"num_hidden_layers", 28},
          {"num_key_value_heads", 4},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1000000.0},
          {"sliding_window", 131072},
          {"use_sliding_window", false},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"},
          {"vocab_size", 152064}};
}

TEST(Published, Qwen25) {
  const ModelSpec spec = read(qwen25());
  expect_dimensions(spec, {28, 3584, 28, 4, 128, 18944, 152064, 32768, 128});
  expect_plain_but(spec, {"qkv_bias"});
  EXPECT_EQ(spec.rope().base(), 1e6);
}

// As Qwen's instructions for long texts have it.
TEST(Published, Qwen25WithYarn) {
  json config = qwen25();
  config["rope_scaling"] = {
      {"factor", 4.0}, {"original_max_position_embeddings", 32768}, {"type", "yarn"}};
  const ModelSpec spec = read(config);
  const RopeSpec& rope = spec.rope();
  EXPECT_EQ(rope.scaling(), ROPE_SCALING_YARN);
  EXPECT_EQ(rope.factor(), 4);
  EXPECT_EQ(rope.original_context(), 32768);
  EXPECT_EQ(rope.beta_fast(), 32);
  EXPECT_EQ(rope.beta_slow(), 1);
  EXPECT_FALSE(rope.unrounded());
  EXPECT_DOUBLE_EQ(rope.attention_factor(), 0.1 * std::log(4.0) + 1);
  EXPECT_EQ(spec.context_length(), 131072);
}

TEST(Published, YarnOptions) {
  json config = qwen25();
  config["rope_scaling"] = {{"factor", 40},      {"rope_type", "yarn"},   {"mscale", 0.707},
                            {"truncate", false}, {"mscale_all_dim", 0.5}, {"beta_fast", 16},
                            {"beta_slow", 2}};
  RopeSpec rope = read(config).rope();
  EXPECT_EQ(rope.original_context(), 32768);  // where it is not said
  EXPECT_EQ(rope.beta_fast(), 16);
  EXPECT_EQ(rope.beta_slow(), 2);
  EXPECT_TRUE(rope.unrounded());
  EXPECT_DOUBLE_EQ(rope.attention_factor(),
                   (0.0707 * std::log(40.0) + 1) / (0.05 * std::log(40.0) + 1));
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_EQ(read(config).rope().attention_factor(), 1.5);
}

TEST(Published, Qwen2WindowsOfTheUpperLayers) {
  json config = qwen25();
  config.update(
      {{"use_sliding_window", true}, {"sliding_window", 1000}, {"max_window_layers", 25}});
  ModelSpec spec = read(config);
  ASSERT_EQ(spec.windows_size(), 28);
  for (int32_t i = 0; i < 28; ++i) EXPECT_EQ(spec.windows(i), i < 25 ? 0 : 1000) << i;
  config["max_window_layers"] = 28;
  EXPECT_TRUE(read(config).windows().empty());
  config["layer_types"] = std::vector<std::string>(28, "full_attention");
  config["layer_types"][3] = "sliding_attention";
  spec = read(config);  // the list is what counts
  for (int32_t i = 0; i < 28; ++i) EXPECT_EQ(spec.windows(i), i == 3 ? 1000 : 0) << i;
}

TEST(Published, Qwen3) {
  const ModelSpec spec = read({{"model_type", "qwen3"},
                               {"attention_bias", false},
                               {"bos_token_id", 151643},
                               {"eos_token_id", 151645},
                               {"head_dim", 128},
                               {"hidden_act", "silu"},
                               {"hidden_size", 4096},
                               {"intermediate_size", 12288},
                               {"max_position_embeddings", 40960},
                               {"max_window_layers", 36},
                               {"num_attention_heads", 32},
                               {"num_hidden_layers", 36},
                               {"num_key_value_heads", 8},
                               {"rms_norm_eps", 1e-6},
                               {"rope_scaling", nullptr},
                               {"rope_theta", 1000000},
                               {"sliding_window", nullptr},
                               {"tie_word_embeddings", false},
                               {"torch_dtype", "bfloat16"},
                               {"use_sliding_window", false},
                               {"vocab_size", 151936}});
  expect_dimensions(spec, {36, 4096, 32, 8, 128, 12288, 151936, 40960, 128});
  expect_plain_but(spec, {"qk_norm"});
  uint64_t parameters = 0;
  for (const ModuleSpec& module : spec.modules()) parameters += module.parameters();
  EXPECT_EQ(parameters, 8'190'735'360u);
}

TEST(Published, Mistral) {
  json config = {{"model_type", "mistral"},
                 {"bos_token_id", 1},
                 {"eos_token_id", 2},
                 {"hidden_act", "silu"},
                 {"hidden_size", 4096},
                 {"intermediate_size", 14336},
                 {"max_position_embeddings", 32768},
                 {"num_attention_heads", 32},
                 {"num_hidden_layers", 32},
                 {"num_key_value_heads", 8},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"sliding_window", 4096},
                 {"tie_word_embeddings", false},
                 {"torch_dtype", "bfloat16"},
                 {"vocab_size", 32000}};
  ModelSpec spec = read(config);
  expect_dimensions(spec, {32, 4096, 32, 8, 128, 14336, 32000, 32768, 128});
  expect_plain_but(spec, {"windows"});
  EXPECT_EQ(std::vector<int32_t>(spec.windows().begin(), spec.windows().end()),
            std::vector<int32_t>(32, 4096));
  config.update({{"sliding_window", nullptr}, {"rope_theta", 1e6}, {"vocab_size", 32768}});  // v0.3
  spec = read(config);
  expect_plain_but(spec, {});
  EXPECT_EQ(spec.rope().base(), 1e6);
}

json gemma(const char* type) {
  return {{"model_type", type},        {"bos_token_id", 2},
          {"eos_token_id", 1},         {"attention_bias", false},
          {"head_dim", 256},           {"hidden_act", "gelu"},
          {"hidden_size", 2048},       {"intermediate_size", 16384},
          {"num_attention_heads", 8},  {"num_hidden_layers", 18},
          {"num_key_value_heads", 1},  {"rms_norm_eps", 1e-6},
          {"torch_dtype", "bfloat16"}, {"rope_theta", 10000.0},
          {"vocab_size", 256000},      {"max_position_embeddings", 8192}};
}

TEST(Published, Gemma2b) {
  const ModelSpec spec = read(gemma("gemma"));
  expect_dimensions(spec, {18, 2048, 8, 1, 256, 16384, 256000, 8192, 256});
  expect_plain_but(spec, {"gelu", "tied", "embedding_scale"});
  EXPECT_EQ(spec.embedding_scale(), std::sqrt(2048.0));
}

TEST(Published, Gemma2Of9b) {
  json config = gemma("gemma2");
  config.update({{"attn_logit_softcapping", 50.0},
                 {"final_logit_softcapping", 30.0},
                 {"hidden_act", "gelu_pytorch_tanh"},
                 {"hidden_activation", "gelu_pytorch_tanh"},
                 {"hidden_size", 3584},
                 {"intermediate_size", 14336},
                 {"num_attention_heads", 16},
                 {"num_hidden_layers", 42},
                 {"num_key_value_heads", 8},
                 {"query_pre_attn_scalar", 256},
                 {"sliding_window", 4096}});
  ModelSpec spec = read(config);
  expect_dimensions(spec, {42, 3584, 16, 8, 256, 14336, 256000, 8192, 256});
  expect_plain_but(spec, {"gelu", "tied", "embedding_scale", "post_norms", "windows",
                          "attention_scale", "attention_softcap", "logit_softcap"});
  EXPECT_EQ(spec.attention_scale(), 0.0625);
  EXPECT_EQ(spec.attention_softcap(), 50);
  EXPECT_EQ(spec.logit_softcap(), 30);
  for (int32_t i = 0; i < 42; ++i) EXPECT_EQ(spec.windows(i), i % 2 == 0 ? 4096 : 0) << i;
  config.erase("attn_logit_softcapping");
  config["final_logit_softcapping"] = nullptr;
  spec = read(config);
  EXPECT_EQ(spec.attention_softcap(), 50);  // the class's where nothing is said
  EXPECT_EQ(spec.logit_softcap(), 0);
}

TEST(Published, Gemma3Of1b) {
  json config = gemma("gemma3_text");
  config.erase("hidden_act");
  config.update({{"attn_logit_softcapping", nullptr},
                 {"final_logit_softcapping", nullptr},
                 {"eos_token_id", {1, 106}},
                 {"hidden_activation", "gelu_pytorch_tanh"},
                 {"hidden_size", 1152},
                 {"intermediate_size", 6912},
                 {"max_position_embeddings", 32768},
                 {"num_attention_heads", 4},
                 {"num_hidden_layers", 26},
                 {"query_pre_attn_scalar", 256},
                 {"rope_local_base_freq", 10000},
                 {"rope_scaling", nullptr},
                 {"rope_theta", 1000000},
                 {"sliding_window", 512},
                 {"sliding_window_pattern", 6},
                 {"vocab_size", 262144}});
  ModelSpec spec = read(config);
  EXPECT_EQ(spec.family(), "gemma3");
  expect_dimensions(spec, {26, 1152, 4, 1, 256, 6912, 262144, 32768, 256});
  expect_plain_but(spec, {"gelu", "tied", "embedding_scale", "post_norms", "windows", "qk_norm",
                          "local_rope", "attention_scale"});
  EXPECT_EQ(spec.rope().base(), 1e6);
  EXPECT_EQ(spec.local_rope().base(), 1e4);
  for (int32_t i = 0; i < 26; ++i) EXPECT_EQ(spec.windows(i), i % 6 == 5 ? 0 : 512) << i;
  // The same as transformers 5 writes it, and the scaling of the larger ones.
  for (const char* key : {"rope_theta", "rope_local_base_freq", "rope_scaling"}) config.erase(key);
  config["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8}, {"rope_theta", 1e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  spec = read(config);
  EXPECT_EQ(spec.rope().base(), 1e6);
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_LINEAR);
  EXPECT_EQ(spec.rope().factor(), 8);
  EXPECT_EQ(spec.local_rope().base(), 1e4);
  EXPECT_EQ(spec.local_rope().scaling(), ROPE_SCALING_NONE);
}

}  // namespace
}  // namespace trireme
