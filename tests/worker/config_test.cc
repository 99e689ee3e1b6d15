// SPDX-License-Identifier: Apache-2.0
// config.json: its dialects and options, and what is refused of it.
#include "worker/model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/worker/model_files.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<int32_t> stop_ids(const ModelSpec& spec) {
  return {spec.stop_ids().begin(), spec.stop_ids().end()};
}

// ---- variants of config.json ----

// tests/data/BASE/config.json with `changes` merged in (null removes a key).
ModelSpec read_changed(const std::string& base, const json& changes,
                       const json& generation = nullptr) {
  const TemporaryFolder folder;
  json config = json::parse(read_whole(test_data(base + "/config.json")));
  config.merge_patch(changes);
  folder.write("config.json", config.dump());
  if (!generation.is_null()) folder.write("generation_config.json", generation.dump());
  return read_model_spec(folder.path());
}

TEST(Config, ReadsTheDialectOfPublishedCheckpoints) {
  const ModelSpec spec =
      read_changed("tiny-llama3",
                   {{"rope_parameters", nullptr}, {"dtype", nullptr}, {"torch_dtype", "bfloat16"}});
  EXPECT_EQ(spec.rope().base(), 5e5);
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_LLAMA3);
  EXPECT_EQ(spec.checkpoint_dtype(), "bf16");
}

TEST(Config, ReadsTheDialectOfTransformers5) {
  const ModelSpec spec = read_changed(
      "tiny-glm",
      {{"rope_theta", nullptr}, {"partial_rotary_factor", nullptr}, {"torch_dtype", nullptr}});
  EXPECT_EQ(spec.rope().base(), 1e4);
  EXPECT_EQ(spec.rope().rotary_dim(), 8);
  EXPECT_EQ(spec.checkpoint_dtype(), "fp32");
}

TEST(Config, FillsInWhatOldConfigsLeaveOut) {
  const ModelSpec spec = read_changed("tiny-llama3", {{"rope_parameters", nullptr},
                                                      {"rope_scaling", nullptr},
                                                      {"rope_theta", nullptr},
                                                      {"head_dim", nullptr},
                                                      {"num_key_value_heads", nullptr},
                                                      {"attention_bias", nullptr},
                                                      {"tie_word_embeddings", nullptr},
                                                      {"mlp_bias", nullptr}});
  EXPECT_EQ(spec.rope().base(), 1e4);
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_NONE);
  EXPECT_EQ(spec.head_dim(), 8);
  EXPECT_EQ(spec.num_kv_heads(), 8);
  EXPECT_FALSE(spec.tied_embeddings());
}

TEST(Config, TakesTheTypeOfTheWeightsWhereNoneIsSaid) {
  const TemporaryFolder folder;
  fs::copy(test_data("tiny-chatglm3"), folder.path());
  json config = json::parse(read_whole(folder.path() + "/config.json"));
  config.erase("torch_dtype");
  folder.write("config.json", config.dump());
  EXPECT_EQ(read_model_spec(folder.path()).checkpoint_dtype(), "bf16");
}

TEST(Config, ReadsVariants) {
  EXPECT_EQ(read_changed("tiny-chatglm3", {{"multi_query_attention", false}}).num_kv_heads(), 8);
  EXPECT_FALSE(read_changed("tiny-chatglm3", {{"add_qkv_bias", false}}).qkv_bias());
  const ModelSpec biases =
      read_changed("tiny-llama3", {{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(biases.qkv_bias() && biases.attention_out_bias() && biases.mlp_bias());
  const ModelSpec linear = read_changed(
      "tiny-qwen2",
      {{"rope_parameters", nullptr}, {"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}});
  EXPECT_EQ(linear.rope().scaling(), ROPE_SCALING_LINEAR);
  EXPECT_EQ(linear.rope().factor(), 2.5);
  const ModelSpec stops = read_changed("tiny-chatglm3", json::object(),
                                       {{"eos_token_id", {2, 7, 9}}, {"bos_token_id", 1}});
  EXPECT_EQ(stop_ids(stops), (std::vector<int32_t>{2, 7, 9}));
  EXPECT_EQ(stops.bos_id(), 1);
}

// ---- what is refused ----

struct BadConfig {
  const char* name;
  const char* base;
  json changes;
  const char* message;
};

const std::vector<BadConfig> kBadConfigs = {
    {"NoType",
     "tiny-llama3",
     {{"model_type", nullptr}},
     "model_type is missing; one of chatglm, gemma, gemma2, gemma3_text, glm"},
    {"UnknownType",
     "tiny-llama3",
     {{"model_type", "gpt2"}},
     "model_type is \"gpt2\"; one of chatglm"},
    {"NumberForType", "tiny-llama3", {{"model_type", 3}}, "model_type is 3; a string"},
    {"Quantised",
     "tiny-llama3",
     {{"quantization_config", {{"quant_method", "gptq"}}}},
     "quantization_config is an object; plain"},
    {"NoLayers", "tiny-llama3", {{"num_hidden_layers", nullptr}}, "num_hidden_layers is missing"},
    {"ZeroLayers", "tiny-llama3", {{"num_hidden_layers", 0}}, "num_hidden_layers is 0; an integer"},
    {"NegativeHidden", "tiny-llama3", {{"hidden_size", -64}}, "hidden_size is -64"},
    {"HugeHidden", "tiny-llama3", {{"hidden_size", 1 << 20}}, "hidden_size is 1048576"},
    {"FractionalHeads",
     "tiny-llama3",
     {{"num_attention_heads", 7.5}},
     "num_attention_heads is 7.5"},
    {"TextForFfn", "tiny-llama3", {{"intermediate_size", "168"}}, "intermediate_size is \"168\""},
    {"Past63Bits",
     "tiny-llama3",
     {{"vocab_size", 18446744073709551615u}},
     "vocab_size is 18446744073709551615"},
    {"HeadsDoNotShare",
     "tiny-llama3",
     {{"num_key_value_heads", 3}},
     "8 attention heads cannot share 3 key/value heads"},
    {"MoreKvThanHeads", "tiny-llama3", {{"num_key_value_heads", 16}}, "cannot share 16"},
    {"HeadsDoNotDivide",
     "tiny-llama3",
     {{"head_dim", nullptr}, {"num_attention_heads", 6}},
     "head_dim is missing; it is needed"},
    {"HeadsTooWide",
     "tiny-llama3",
     {{"head_dim", nullptr}, {"hidden_size", 16384}},
     "a head has 2048 channels; at most 1024"},
    {"OddRotary", "tiny-glm", {{"head_dim", 10}}, "5 of 10 channels of a head rotate"},
    {"PartialDisagrees",
     "tiny-glm",
     {{"partial_rotary_factor", 0.25}},
     "rope_parameters.partial_rotary_factor is 0.5; the same"},
    {"PartialOverOne",
     "tiny-glm",
     {{"rope_parameters", {{"partial_rotary_factor", 1.5}}}},
     "partial_rotary_factor is 1.5"},
    {"ThetaDisagrees",
     "tiny-llama3",
     {{"rope_theta", 10000}},
     "rope_parameters.rope_theta is 500000"},
    {"ZeroTheta",
     "tiny-llama3",
     {{"rope_parameters", nullptr}, {"rope_theta", 0}},
     "rope_theta is 0"},
    {"DynamicScaling",
     "tiny-qwen2",
     {{"rope_parameters", nullptr}, {"rope_scaling", {{"type", "dynamic"}, {"factor", 4}}}},
     "rope_scaling.type is \"dynamic\"; default, linear, llama3 or yarn is supported"},
    {"LongRope",
     "tiny-qwen2",
     {{"rope_parameters", {{"rope_type", "longrope"}, {"factor", 4}}}},
     "rope_parameters.rope_type is \"longrope\"; default, linear, llama3 or yarn is supported"},
    {"YarnNoFactor",
     "tiny-qwen2",
     {{"rope_parameters", {{"rope_type", "yarn"}}}},
     "rope_parameters.factor is missing; a number"},
    {"YarnBetas",
     "tiny-qwen2",
     {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 4}, {"beta_fast", 0.5}}}},
     "the YaRN scaling of its rotary embedding has no meaning"},
    {"YarnBase",
     "tiny-qwen2",
     {{"rope_theta", nullptr},
      {"rope_parameters", {{"rope_type", "yarn"}, {"factor", 4}, {"rope_theta", 1}}}},
     "the YaRN scaling of its rotary embedding has no meaning"},
    {"RopeByLayerType",
     "tiny-qwen2",
     {{"rope_parameters", {{"full_attention", {{"rope_theta", 1e6}}}}}},
     "rope_parameters is an object; one setting for all layers"},
    {"LayerTypes",
     "tiny-qwen2",
     {{"layer_types", {"full_attention", "chunked_attention", "full_attention"}}},
     "layer_types is a list; full_attention and sliding_attention are supported"},
    {"TooFewLayerTypes",
     "tiny-qwen2",
     {{"layer_types", {"full_attention"}}},
     "layer_types is a list; one type for each of the 3 layers is needed"},
    {"SlidingWithoutWindow",
     "tiny-qwen2",
     {{"layer_types", {"full_attention", "sliding_attention", "full_attention"}}},
     "layer_types is a list; no layer can slide without a sliding_window"},
    {"NumberInLayerTypes", "tiny-qwen2", {{"layer_types", {1, 2, 3}}}, "a list of strings"},
    {"WindowOfNothing",
     "tiny-qwen2",
     {{"sliding_window", 0}, {"use_sliding_window", true}},
     "sliding_window is 0; an integer from 1"},
    {"NoFirstWindowLayer",
     "tiny-qwen2",
     {{"sliding_window", 16},
      {"use_sliding_window", true},
      {"max_window_layers", nullptr},
      {"layer_types", nullptr}},
     "max_window_layers is missing"},
    {"MistralWithoutWindow",
     "tiny-llama3",
     {{"model_type", "mistral"}},
     "sliding_window is missing; the positions that a token sees are needed, or null for all"},
    {"ScalingDisagrees",
     "tiny-llama3",
     {{"rope_scaling", {{"rope_type", "linear"}}}},
     "rope_scaling is an object; the same type"},
    {"NoFactor",
     "tiny-llama3",
     {{"rope_parameters", {{"factor", nullptr}}}},
     "rope_parameters.factor is missing"},
    {"FactorsReversed",
     "tiny-llama3",
     {{"rope_parameters", {{"low_freq_factor", 9}}}},
     "high_freq_factor is 4.0; more than"},
    {"RopeIsNoObject", "tiny-llama3", {{"rope_parameters", 7}}, "rope_parameters is 7; an object"},
    {"Activation", "tiny-llama3", {{"hidden_act", "gelu"}}, "hidden_act is \"gelu\"; silu"},
    {"TextForFlag",
     "tiny-llama3",
     {{"attention_bias", "yes"}},
     "attention_bias is \"yes\"; true or"},
    {"SlidingWindow",
     "tiny-llama3",
     {{"sliding_window", 1024}},
     "sliding_window is 1024; attention over the whole"},
    {"ZeroEps", "tiny-llama3", {{"rms_norm_eps", 0}}, "rms_norm_eps is 0"},
    {"Dtype", "tiny-llama3", {{"dtype", "float8_e4m3fn"}}, "dtype is \"float8_e4m3fn\"; float32"},
    {"EosOutside",
     "tiny-llama3",
     {{"eos_token_id", 512}},
     "end-of-text id 512 is not in the vocab"},
    {"EosNegative", "tiny-llama3", {{"eos_token_id", -1}}, "eos_token_id is -1"},
    {"EosText", "tiny-llama3", {{"eos_token_id", {1, "x"}}}, "eos_token_id is a list; each item"},
    {"LayerNorm", "tiny-chatglm3", {{"rmsnorm", false}}, "rmsnorm is false; only true"},
    {"NoFinalNorm", "tiny-chatglm3", {{"post_layer_norm", false}}, "post_layer_norm is false"},
    {"PostResidual",
     "tiny-chatglm3",
     {{"apply_residual_connection_post_layernorm", true}},
     "apply_residual_connection_post_layernorm is true; only false"},
    {"LinearBias", "tiny-chatglm3", {{"add_bias_linear", true}}, "add_bias_linear is true"},
    {"NegativePrefix", "tiny-chatglm3", {{"pre_seq_len", -1}}, "pre_seq_len is -1"},
    {"QuantBits", "tiny-chatglm3", {{"quantization_bit", 4}}, "quantization_bit is 4"},
    {"Groups", "tiny-chatglm3", {{"multi_query_group_num", 0}}, "multi_query_group_num is 0"},
    {"RopeRatio", "tiny-chatglm3", {{"rope_ratio", -1}}, "rope_ratio is -1"},
    {"RopeRatioOfWhom",
     "tiny-chatglm3",
     {{"rope_ratio", 16}, {"_name_or_path", "/data/tuned"}},
     "rope_ratio is 16; _name_or_path must say what it means: chatglm2 divides"},
    {"Bidirectional",
     "tiny-llama3",
     {{"model_type", "gemma"}, {"use_bidirectional_attention", true}},
     "use_bidirectional_attention is true; causal attention"},
    {"GemmaActivation",
     "tiny-llama3",
     {{"model_type", "gemma2"}, {"hidden_activation", "gelu"}},
     "hidden_activation is \"gelu\"; silu or gelu_pytorch_tanh"},
    {"NoCap",
     "tiny-llama3",
     {{"model_type", "gemma2"}, {"hidden_act", nullptr}, {"final_logit_softcapping", 0}},
     "final_logit_softcapping is 0"},
};

class RefusedConfig : public testing::TestWithParam<BadConfig> {};

INSTANTIATE_TEST_SUITE_P(All, RefusedConfig, testing::ValuesIn(kBadConfigs),
                         [](const auto& row) { return std::string(row.param.name); });

TEST_P(RefusedConfig, NamesTheKey) {
  expect_error(Code::kInvalidArgument, GetParam().message,
               [] { read_changed(GetParam().base, GetParam().changes); });
}

TEST(Config, RefusesWhatIsNoConfig) {
  const TemporaryFolder folder;
  expect_error(Code::kNotFound, "config.json", [&] { read_model_spec(folder.path()); });
  expect_error(Code::kNotFound, "/nothing", [&] { read_model_spec(folder.path() + "/nothing"); });
  folder.write("config.json", "{\"model_type\":");
  expect_error(Code::kInvalidArgument, "no valid JSON", [&] { read_model_spec(folder.path()); });
  folder.write("config.json", std::string(17 << 20, ' '));
  expect_error(Code::kInvalidArgument, "at most 16777216", [&] { read_model_spec(folder.path()); });
  expect_error(
      Code::kInvalidArgument,
      "cannot serve the model family 'bert': one of chatglm, gemma, gemma2, gemma3_text, glm",
      [] { find_family("bert"); });
}

}  // namespace
}  // namespace trireme
