// SPDX-License-Identifier: Apache-2.0
#include "worker/model/family.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/worker/model_files.h"
#include "worker/model/safetensors.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::string shared_data(const std::string& name) {
  return std::string(TRIREME_SOURCE_DIR) + "/../shared/data/" + name;
}

std::vector<int32_t> stop_ids(const ModelSpec& spec) {
  return {spec.stop_ids().begin(), spec.stop_ids().end()};
}

// layers, hidden, heads, KV heads, head_dim, FFN, vocabulary, context, rotary channels
std::vector<int32_t> dimensions(const ModelSpec& spec) {
  return {spec.num_layers(),   spec.hidden_size(),    spec.num_heads(),
          spec.num_kv_heads(), spec.head_dim(),       spec.ffn_size(),
          spec.vocab_size(),   spec.context_length(), spec.rope().rotary_dim()};
}

// ---- every model at hand ----

struct Known {
  const char* path;  // below tests/data or ../shared/data
  const char* family;
  std::vector<int32_t> dimensions;
  double norm_eps;
  double rope_base;
  bool qkv_bias;
  bool tied;
  const char* dtype;
  std::vector<int32_t> stop_ids;
  int32_t bos_id;
};

const std::vector<int32_t> kTinyChatglm = {3, 64, 8, 2, 8, 168, 576, 2048, 4};
const std::vector<int32_t> kTinyLlama = {3, 64, 8, 2, 8, 168, 512, 2048, 8};
const std::vector<int32_t> kTinyGlm = {3, 64, 8, 2, 16, 168, 512, 2048, 8};
const std::vector<int32_t> kSmollm = {30, 576, 9, 3, 64, 1536, 49152, 8192, 64};

const std::vector<Known> kModels = {
    {"tiny-chatglm3", "chatglm", kTinyChatglm, 1e-5, 1e4, true, false, "bf16", {2}, -1},
    {"tiny-chatglm3-fp16-sharded",
     "chatglm",
     kTinyChatglm,
     1e-5,
     1e4,
     true,
     false,
     "fp16",
     {2},
     -1},
    {"tiny-llama3", "llama", kTinyLlama, 1e-5, 5e5, false, false, "fp32", {484, 481}, 480},
    {"tiny-qwen2", "qwen2", kTinyLlama, 1e-6, 1e6, true, true, "fp32", {482, 480}, -1},
    {"tiny-glm", "glm", kTinyGlm, 1.5625e-7, 1e4, true, false, "fp32", {480, 487, 489}, -1},
    {"gguf/tiny-chatglm3.gguf", "chatglm", kTinyChatglm, 1e-5, 1e4, true, false, "fp16", {2}, -1},
    {"gguf/tiny-llama3.gguf",
     "llama",
     kTinyLlama,
     1e-5,
     5e5,
     false,
     false,
     "fp16",
     {484, 481},
     480},
    {"gguf/tiny-qwen2.gguf", "qwen2", kTinyLlama, 1e-6, 1e6, true, true, "fp16", {482, 480}, -1},
    {"models/tiny-chatglm3-fp32", "chatglm", kTinyChatglm, 1e-5, 1e4, true, false, "fp32", {2}, -1},
    {"models/stories260k",
     "llama",
     {5, 64, 8, 4, 8, 172, 512, 512, 8},
     1e-5,
     1e4,
     false,
     true,
     "fp32",
     {2},
     1},
    {"models/smollm2-135m", "llama", kSmollm, 1e-5, 1e5, false, true, "fp32", {2}, 1},
    {"tokenizers/chatglm3",
     "chatglm",
     {28, 4096, 32, 2, 128, 13696, 65024, 8192, 64},
     1e-5,
     1e4,
     true,
     false,
     "fp16",
     {2},
     -1},
};

class KnownModel : public testing::TestWithParam<Known> {};

INSTANTIATE_TEST_SUITE_P(All, KnownModel, testing::ValuesIn(kModels), [](const auto& row) {
  std::string name = row.param.path;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
});

TEST_P(KnownModel, ReadsItsSpec) {
  const Known& known = GetParam();
  std::string path = test_data(known.path);
  if (!fs::exists(path)) path = shared_data(known.path);
  if (!fs::exists(path)) GTEST_SKIP() << path << " is not on this machine";
  const ModelSpec spec = read_model_spec(path);
  EXPECT_EQ(spec.family(), known.family);
  EXPECT_EQ(spec.name(), fs::path(known.path).stem().string());
  EXPECT_EQ(spec.checkpoint_format(), path.ends_with(".gguf") ? "gguf" : "safetensors");
  EXPECT_EQ(dimensions(spec), known.dimensions);
  EXPECT_FLOAT_EQ(spec.norm_eps(), known.norm_eps);
  EXPECT_EQ(spec.rope().base(), known.rope_base);
  EXPECT_EQ(spec.rope().pairing(), find_family(known.family).pairing);
  EXPECT_EQ(spec.qkv_bias(), known.qkv_bias);
  EXPECT_EQ(spec.tied_embeddings(), known.tied);
  EXPECT_EQ(spec.checkpoint_dtype(), known.dtype);
  EXPECT_EQ(stop_ids(spec), known.stop_ids);
  EXPECT_EQ(spec.bos_id(), known.bos_id);
  ASSERT_EQ(spec.modules_size(), spec.num_layers() + 3);
}

// Both dialects of HF and the divisors in GGUF say the same scaling.
TEST(Family, ReadsLlama3Scaling) {
  for (const char* path : {"tiny-llama3", "gguf/tiny-llama3.gguf"}) {
    const RopeSpec rope = read_model_spec(test_data(path)).rope();
    EXPECT_EQ(rope.scaling(), ROPE_SCALING_LLAMA3) << path;
    EXPECT_FLOAT_EQ(rope.factor(), 8);
    EXPECT_EQ(rope.low_freq_factor(), 1);
    EXPECT_EQ(rope.high_freq_factor(), 4);
    EXPECT_EQ(rope.original_context(), 64);
  }
}

// ---- the real ChatGLM3-6B ----

TEST(Family, NamesEveryTensorOfChatglm3AndCountsItsParameters) {
  const std::string path = shared_data("tokenizers/chatglm3");
  if (!fs::exists(path)) GTEST_SKIP() << path << " is not on this machine";
  const ModelSpec spec = read_model_spec(path);
  std::set<std::string> expected = {"transformer.rotary_pos_emb.inv_freq"};
  for (const WeightRule& rule : weight_rules(spec)) {
    for (int32_t layer = 0; layer < spec.num_layers(); ++layer) {
      expected.insert(tensor_name(rule, layer));
    }
  }
  std::set<std::string> found;
  for (const auto& entry : read_safetensors_index(path + "/model.safetensors.index.json")) {
    found.insert(entry.first);
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(found.size(), 200u);
  uint64_t parameters = 0;
  for (const ModuleSpec& module : spec.modules()) parameters += module.parameters();
  EXPECT_EQ(parameters, 6'243'584'000u);
  EXPECT_EQ(spec.modules(0).name(), "transformer.embedding.word_embeddings");
  EXPECT_EQ(spec.modules(4).name(), "transformer.encoder.layers.3");
  EXPECT_EQ(spec.modules(29).name(), "transformer.encoder.final_layernorm");
  EXPECT_EQ(spec.modules(30).name(), "transformer.output_layer");
}

// ---- rules ----

// Each slot is filled by all its segments, once; a row too many or too few would load nonsense.
TEST(Family, RulesFillEverySlotOnce) {
  for (const ModelFamily* family : model_families()) {
    for (const auto* rules : {&family->safetensors, &family->gguf}) {
      if (rules->empty()) continue;
      std::multiset<std::pair<Slot, Segment>> filled;
      for (const WeightRule& rule : *rules) {
        for (Segment segment : rule.segments) filled.emplace(rule.slot, segment);
      }
      std::multiset<std::pair<Slot, Segment>> needed = {
          {Slot::kEmbedding, Segment::kVocab}, {Slot::kHead, Segment::kVocab},
          {Slot::kFinalNorm, Segment::kWhole}, {Slot::kAttentionNorm, Segment::kWhole},
          {Slot::kMlpNorm, Segment::kWhole},   {Slot::kAttentionOut, Segment::kWhole},
          {Slot::kDown, Segment::kWhole},      {Slot::kGateUp, Segment::kGate},
          {Slot::kGateUp, Segment::kUp},       {Slot::kQkv, Segment::kQ},
          {Slot::kQkv, Segment::kK},           {Slot::kQkv, Segment::kV},
          {Slot::kQkvBias, Segment::kQ},       {Slot::kQkvBias, Segment::kK},
          {Slot::kQkvBias, Segment::kV}};
      const std::vector<std::multiset<std::pair<Slot, Segment>>> optional = {
          {{Slot::kQNorm, Segment::kHeadDim}, {Slot::kKNorm, Segment::kHeadDim}},
          {{Slot::kPostAttentionNorm, Segment::kWhole}, {Slot::kPostMlpNorm, Segment::kWhole}},
          {{Slot::kAttentionOutBias, Segment::kWhole}},
          {{Slot::kDownBias, Segment::kWhole}},
          {{Slot::kGateUpBias, Segment::kGate}, {Slot::kGateUpBias, Segment::kUp}}};
      for (const auto& slots : optional) {
        if (filled.contains(*slots.begin())) needed.insert(slots.begin(), slots.end());
      }
      EXPECT_EQ(filled, needed) << family->name;
    }
  }
}

}  // namespace
}  // namespace trireme
