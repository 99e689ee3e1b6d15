// SPDX-License-Identifier: Apache-2.0
// What the metadata of GGUF files says, architecture by architecture, and models in several files.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/worker/model_files.h"
#include "worker/model/checkpoint.h"
#include "worker/model/family.h"
#include "worker/model/gguf_set.h"

namespace trireme {
namespace {

using Change = std::function<void(GgufBuilder&)>;
constexpr uint32_t kArray = 9, kBoolean = 7, kUint16 = 2;

// A model of this architecture with six layers (of which only the embedding is there); `change`
// comes last and adds keys or tensors.
GgufBuilder make(const std::string& architecture, const Change& change,
                 const std::set<std::string>& without = {}) {
  GgufBuilder builder;
  builder.string("general.architecture", architecture);
  const std::vector<std::pair<std::string, uint32_t>> integers = {
      {"block_count", 6},          {"embedding_length", 16},
      {"attention.head_count", 4}, {"attention.head_count_kv", 2},
      {"feed_forward_length", 32}, {"context_length", 128}};
  for (const auto& [key, value] : integers) {
    if (!without.contains(key)) builder.integer(architecture + "." + key, value);
  }
  builder.number(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
  if (!without.contains("embedding")) {
    builder.values("token_embd.weight", {16, 8}, std::vector<float>(128));
  }
  change(builder);
  return builder;
}

ModelSpec read(const std::string& architecture, const Change& change,
               const std::set<std::string>& without = {}) {
  const TemporaryFolder folder;
  return read_model_spec(folder.write("tiny.gguf", make(architecture, change, without).build()));
}

const auto kNothing = [](GgufBuilder&) {};

std::vector<int32_t> windows(const ModelSpec& spec) {
  return {spec.windows().begin(), spec.windows().end()};
}

TEST(GgufConfig, ReadsDimensionsAndDefaults) {
  const ModelSpec spec = read("llama", kNothing);
  EXPECT_EQ(spec.num_layers(), 6);
  EXPECT_EQ(spec.hidden_size(), 16);
  EXPECT_EQ(spec.num_heads(), 4);
  EXPECT_EQ(spec.num_kv_heads(), 2);
  EXPECT_EQ(spec.head_dim(), 4);
  EXPECT_EQ(spec.ffn_size(), 32);
  EXPECT_EQ(spec.vocab_size(), 8);
  EXPECT_EQ(spec.context_length(), 128);
  EXPECT_EQ(spec.rope().rotary_dim(), 4);
  EXPECT_EQ(spec.rope().base(), 10000);
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_NONE);
  EXPECT_TRUE(spec.tied_embeddings());
  EXPECT_EQ(spec.bos_id(), -1);
  EXPECT_TRUE(spec.windows().empty());
}

// ---- rotary embedding ----

TEST(GgufConfig, ReadsLinearScaling) {
  const ModelSpec spec = read("llama", [](auto& b) {
    b.string("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", 4);
  });
  EXPECT_EQ(spec.rope().scaling(), ROPE_SCALING_LINEAR);
  EXPECT_EQ(spec.rope().factor(), 4);
}

TEST(GgufConfig, ReadsYarn) {
  const auto yarn = [](const Change& change) {
    return read("qwen2", [&](auto& b) {
      b.string("qwen2.rope.scaling.type", "yarn").number("qwen2.rope.scaling.factor", 4);
      change(b);
    });
  };
  const ModelSpec plain = yarn(kNothing);
  EXPECT_EQ(plain.rope().scaling(), ROPE_SCALING_YARN);
  EXPECT_EQ(plain.rope().original_context(), 128);
  EXPECT_EQ(plain.context_length(), 512);
  EXPECT_EQ(plain.rope().beta_fast(), 32);
  EXPECT_EQ(plain.rope().beta_slow(), 1);
  EXPECT_FALSE(plain.rope().unrounded());
  EXPECT_DOUBLE_EQ(plain.rope().attention_factor(), 0.1 * std::log(4) + 1);
  const ModelSpec full = yarn([](auto& b) {
    b.integer("qwen2.rope.scaling.original_context_length", 16);
    b.number("qwen2.rope.scaling.yarn_beta_fast", 16);
    b.number("qwen2.rope.scaling.yarn_beta_slow", 2);
    b.number("qwen2.rope.scaling.attn_factor", 0.5f);
    b.number("qwen2.rope.scaling.yarn_attn_factor", 0.25f);
    b.number("qwen2.rope.scaling.yarn_ext_factor", 1);
  });
  EXPECT_EQ(full.rope().original_context(), 16);
  EXPECT_EQ(full.context_length(), 128);
  EXPECT_EQ(full.rope().beta_fast(), 16);
  EXPECT_EQ(full.rope().beta_slow(), 2);
  EXPECT_DOUBLE_EQ(full.rope().attention_factor(), (0.1 * std::log(4) + 1) / 8);
}

// ---- windows ----

TEST(GgufConfig, ReadsWindows) {
  const auto sliding = [](const std::string& architecture, const Change& change) {
    return read(architecture, [&](auto& b) {
      b.integer(architecture + ".attention.sliding_window", 10);
      change(b);
    });
  };
  using Windows = std::vector<int32_t>;
  EXPECT_EQ(windows(sliding("llama", kNothing)), (Windows(6, 10)));
  EXPECT_EQ(windows(sliding(
                "llama", [](auto& b) { b.integer("llama.attention.sliding_window_pattern", 3); })),
            (Windows{10, 10, 0, 10, 10, 0}));
  EXPECT_EQ(windows(sliding("qwen3",
                            [](auto& b) {
                              b.raw("qwen3.attention.sliding_window_pattern", kArray,
                                    bytes_of(kBoolean) + bytes_of(uint64_t{6}) +
                                        std::string({0, 1, 1, 0, 0, 1}));
                            })),
            (Windows{0, 10, 10, 0, 0, 10}));
  EXPECT_EQ(windows(sliding("gemma2", kNothing)), (Windows{10, 0, 10, 0, 10, 0}));
  EXPECT_EQ(windows(sliding("gemma3", kNothing)), (Windows{10, 10, 10, 10, 10, 0}));
  // As wide as the context it is none.
  EXPECT_EQ(
      windows(read("llama", [](auto& b) { b.integer("llama.attention.sliding_window", 128); })),
      (Windows{}));
}

// ---- what an architecture is without a key ----

TEST(GgufConfig, KnowsTheArchitectures) {
  const ModelSpec gemma = read("gemma", kNothing);
  EXPECT_EQ(gemma.activation(), ACTIVATION_GELU_TANH);
  EXPECT_EQ(gemma.embedding_scale(), 4);
  EXPECT_FALSE(gemma.post_norms());
  const ModelSpec gemma2 = read("gemma2", kNothing);
  EXPECT_TRUE(gemma2.post_norms());
  EXPECT_EQ(gemma2.attention_softcap(), 50);
  EXPECT_EQ(gemma2.logit_softcap(), 30);
  EXPECT_EQ(gemma2.attention_scale(), 0.5);  // head_dim 4
  EXPECT_TRUE(gemma2.windows().empty());     // 4096 of a context of 128
  const ModelSpec capped = read("gemma2", [](auto& b) {
    b.number("gemma2.attn_logit_softcapping", 4).number("gemma2.final_logit_softcapping", 12);
    b.number("gemma2.attention.scale", 0.25f);
  });
  EXPECT_EQ(capped.attention_softcap(), 4);
  EXPECT_EQ(capped.logit_softcap(), 12);
  EXPECT_EQ(capped.attention_scale(), 0.25);
  const ModelSpec large =
      read("gemma2",
           [](auto& b) {
             b.integer("gemma2.block_count", 46).integer("gemma2.attention.key_length", 8);
             b.integer("gemma2.attention.value_length", 8);
           },
           {"block_count"});
  EXPECT_EQ(large.attention_scale(), 0.5);  // by hidden_size / heads, not by the heads of 8
  const ModelSpec gemma3 = read("gemma3", [](auto& b) {
    b.number("gemma3.rope.freq_base", 1e6f).string("gemma3.rope.scaling.type", "linear");
    b.number("gemma3.rope.scaling.factor", 8);
  });
  EXPECT_TRUE(gemma3.qk_norm() && gemma3.post_norms());
  EXPECT_EQ(gemma3.logit_softcap(), 0);
  EXPECT_EQ(gemma3.rope().scaling(), ROPE_SCALING_LINEAR);
  EXPECT_EQ(gemma3.local_rope().base(), 10000);
  EXPECT_EQ(gemma3.local_rope().scaling(), ROPE_SCALING_NONE);
  EXPECT_EQ(gemma3.local_rope().rotary_dim(), 4);
  EXPECT_TRUE(read("qwen3", kNothing).qk_norm());
  EXPECT_FALSE(read("qwen2", kNothing).qk_norm());
  EXPECT_TRUE(read("glm4", kNothing).post_norms());
}

// ---- what is refused ----

TEST(GgufConfig, RefusesWhatItCannotServe) {
  const auto refused = [](const char* message, const Change& change,
                          const std::set<std::string>& without = {},
                          const char* architecture = "llama") {
    expect_error(Code::kInvalidArgument, message, [&] { read(architecture, change, without); });
  };
  refused("llama.block_count is missing; an integer", kNothing, {"block_count"});
  refused("llama.attention.head_count is 0",
          [](auto& b) { b.integer("llama.attention.head_count", 0); }, {"attention.head_count"});
  refused("the embedding is 0 rows", kNothing, {"embedding"});
  refused("llama.expert_count is 8", [](auto& b) { b.integer("llama.expert_count", 8); });
  refused("llama.attention.clamp_kqv is there",
          [](auto& b) { b.number("llama.attention.clamp_kqv", 8); });
  refused("llama.attention.causal is false",
          [](auto& b) { b.raw("llama.attention.causal", kBoolean, std::string(1, '\0')); });
  refused(
      "chatglm.attention.sliding_window is 10; which layers have the window must be said",
      [](auto& b) { b.integer("chatglm.attention.sliding_window", 10); }, {}, "chatglm");
  refused("llama.attention.sliding_window_pattern is 2 flags; one for each layer", [](auto& b) {
    b.integer("llama.attention.sliding_window", 10);
    b.raw("llama.attention.sliding_window_pattern", kArray,
          bytes_of(kBoolean) + bytes_of(uint64_t{2}) + std::string({0, 1}));
  });
  refused("llama.attention.sliding_window_pattern is -1", [](auto& b) {
    b.integer("llama.attention.sliding_window", 10);
    b.raw("llama.attention.sliding_window_pattern", 5, bytes_of(int32_t{-1}));
  });
  refused("llama.rope.scaling.type is longrope; none, linear or yarn",
          [](auto& b) { b.string("llama.rope.scaling.type", "longrope"); });
  refused("llama.rope.scaling.factor is missing",
          [](auto& b) { b.string("llama.rope.scaling.type", "yarn"); });
  for (const char* key : {"yarn_ext_factor", "yarn_log_multiplier"}) {
    refused("is 0.5", [&](auto& b) {
      b.string("llama.rope.scaling.type", "yarn").number("llama.rope.scaling.factor", 4);
      b.number(std::string("llama.rope.scaling.") + key, 0.5f);
    });
  }
  refused("rope.dimension_count is 2; all 4",
          [](auto& b) { b.integer("llama.rope.dimension_count", 2); });
  refused("attention.value_length is 8",
          [](auto& b) { b.integer("llama.attention.value_length", 8); });
  refused("rope_freqs.weight is not the scaling of Llama 3", [](auto& b) {
    b.values("rope_freqs.weight", {2}, {3, 0.5f});
  });
  refused("rope_freqs.weight is not the scaling of Llama 3", [](auto& b) {
    b.values("rope_freqs.weight", {2}, {NAN, NAN});
  });
  refused("rope_freqs.weight is of another shape", [](auto& b) {
    b.values("rope_freqs.weight", {3}, {1, 1, 1});
  });
  refused("rope_freqs.weight is there beside rope.scaling.type", [](auto& b) {
    b.string("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", 4);
    b.values("rope_freqs.weight", {2}, {1, 1});
  });
  refused("eos_token_id is 8; an id of the vocabulary of 8",
          [](auto& b) { b.integer("tokenizer.ggml.eos_token_id", 8); });
}

TEST(GgufConfig, RefusesOtherArchitectures) {
  const TemporaryFolder folder;
  GgufBuilder builder;
  expect_error(Code::kInvalidArgument, "cannot serve the model family ''",
               [&] { read_model_spec(folder.write("a.gguf", builder.build())); });
  builder.string("general.architecture", "mistral");
  expect_error(Code::kInvalidArgument, "read from safetensors only",
               [&] { read_model_spec(folder.write("a.gguf", builder.build())); });
}

// ---- models in several files ----

// Part `index` of three: the first has the metadata, the second the embedding, the third two norms.
std::string part(uint16_t index, const Change& change = kNothing) {
  GgufBuilder builder = index == 0 ? make("llama", kNothing, {"embedding"}) : GgufBuilder();
  builder.raw("split.count", kUint16, bytes_of(uint16_t{3}));
  builder.raw("split.no", kUint16, bytes_of(index));
  builder.raw("split.tensors.count", 5, bytes_of(int32_t{3}));
  if (index == 1) builder.values("token_embd.weight", {16, 8}, std::vector<float>(128, 0.5f));
  if (index == 2) {
    builder.values("blk.0.attn_norm.weight", {2}, {1, 2}).values("output.weight", {2}, {3, 4});
  }
  change(builder);
  return builder.build();
}

struct Parts {
  Parts() {
    for (uint16_t index = 0; index < 3; ++index) {
      folder.write("model-0000" + std::to_string(index + 1) + "-of-00003.gguf", part(index));
    }
  }
  TemporaryFolder folder;
  std::string first = folder.path() + "/model-00001-of-00003.gguf";
};

TEST(GgufSet, FindsTensorsInEveryPart) {
  const Parts parts;
  const ModelSpec spec = read_model_spec(parts.first);
  EXPECT_EQ(spec.vocab_size(), 8);
  EXPECT_FALSE(spec.tied_embeddings());  // the head is in the third
  const auto checkpoint = Checkpoint::open(parts.first);
  float values[2];
  checkpoint->read(*checkpoint->find("output.weight"), 0, 0, Tensor(values, DType::kF32, 1, 2));
  EXPECT_EQ(values[1], 4);
  checkpoint->read(*checkpoint->find("token_embd.weight"), 7, 14,
                   Tensor(values, DType::kF32, 1, 2));
  EXPECT_EQ(values[1], 0.5f);
  EXPECT_EQ(checkpoint->total_bytes(), 4u * (128 + 2 + 2));
}

TEST(GgufSet, RefusesPartsThatDoNotFit) {
  const auto refused = [](Code code, const char* message, const Change& change, uint16_t index,
                          bool absent = false) {
    const Parts parts;
    const std::string name = "model-0000" + std::to_string(index + 1) + "-of-00003.gguf";
    if (absent) std::filesystem::remove(parts.folder.path() + "/" + name);
    if (!absent) parts.folder.write(name, part(index, change));
    expect_error(code, message, [&] { GgufSet set(parts.first); });
    expect_error(code, message, [&] { (void)Checkpoint::open(parts.first); });
  };
  refused(Code::kNotFound, "model-00002-of-00003.gguf is missing; download all 3", kNothing, 1,
          true);
  refused(
      Code::kInvalidArgument, "the tensor output.weight is in",
      [](auto& b) { b.values("output.weight", {1}, {1}); }, 1);
  refused(
      Code::kInvalidArgument, "split.tensors.count is 3, but the parts hold 4",
      [](auto& b) { b.values("more", {1}, {1}); }, 1);
  const Parts parts;
  expect_error(Code::kInvalidArgument, "the first is needed, whose name ends in -00001-of-00003",
               [&] { GgufSet set(parts.folder.path() + "/model-00002-of-00003.gguf"); });
  parts.folder.write("model-00002-of-00003.gguf", part(2));
  expect_error(Code::kInvalidArgument, "split.no is 2 and split.count 3; 1 and 3 are needed",
               [&] { GgufSet set(parts.first); });
  parts.folder.write("model-00002-of-00003.gguf", "");
  expect_error(Code::kInvalidArgument, "model-00002-of-00003.gguf as GGUF",
               [&] { GgufSet set(parts.first); });
  GgufBuilder many;
  many.raw("split.count", 4, bytes_of(~uint32_t{0}));
  expect_error(Code::kInvalidArgument, "split.count is 4294967295; 0 to 99999",
               [&] { GgufSet set(parts.folder.write("many.gguf", many.build())); });
}

}  // namespace
}  // namespace trireme
