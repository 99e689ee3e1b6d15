// SPDX-License-Identifier: Apache-2.0
#include "worker/model/dtype_map.h"

#include <gtest/gtest.h>

#include "tests/worker/model_files.h"
#include "topology/shard.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

DtypeMap read(const std::string& checkpoint, const std::string& text) {
  const TemporaryFolder folder;
  return read_dtype_map(folder.write("types.json", text), read_model_spec(test_data(checkpoint)));
}

std::vector<std::string> of_layer(const DtypeMap& map, int layer) {
  const LayerDtypes& types = map.weights.layers(layer);
  return {types.qkv(), types.attention_out(), types.gate_up(), types.down()};
}

using Types = std::vector<std::string>;

TEST(DtypeMap, TheLongestNameWins) {
  const DtypeMap map = read("tiny-chatglm3", R"({
    "": "fp16",
    "transformer.encoder.layers.1": "fp32",
    "transformer.encoder.layers.1.mlp": "bf16",
    "transformer.encoder.layers.1.mlp.dense_4h_to_h": "fp16",
    "transformer.encoder.layers.2.self_attention.query_key_value": "fp32",
    "transformer.output_layer": "fp32",
    "transformer.encoder.final_layernorm": "fp32"})");
  EXPECT_EQ(map.dtype, DType::kF16);
  EXPECT_EQ(map.weights.embedding(), "fp16");
  EXPECT_EQ(map.weights.head(), "fp32");
  ASSERT_EQ(map.weights.layers_size(), 3);
  EXPECT_EQ(of_layer(map, 0), (Types{"fp16", "fp16", "fp16", "fp16"}));
  EXPECT_EQ(of_layer(map, 1), (Types{"fp32", "fp32", "bf16", "fp16"}));
  EXPECT_EQ(of_layer(map, 2), (Types{"fp32", "fp16", "fp16", "fp16"}));
}

// "model.layers.1" is no prefix of "model.layers.10"'s modules; a name ends at a dot.
TEST(DtypeMap, NamesEndAtDots) {
  ModelSpec model = read_model_spec(test_data("tiny-llama3"));
  model.set_num_layers(11);
  const TemporaryFolder folder;
  const DtypeMap map =
      read_dtype_map(folder.write("types.json", R"({"model.layers.1": "bf16"})"), model);
  EXPECT_EQ(map.dtype, DType::kF32);  // the checkpoint's
  EXPECT_EQ(of_layer(map, 1), Types(4, "bf16"));
  EXPECT_EQ(of_layer(map, 10), Types(4, "fp32"));
}

TEST(DtypeMap, SeparateTensorsOfOneMatrixAgree) {
  const DtypeMap map = read("tiny-llama3", R"({
    "model.layers.0.self_attn.q_proj": "bf16", "model.layers.0.self_attn.k_proj": "bf16",
    "model.layers.0.self_attn.v_proj": "bf16", "lm_head": "bf16", "model.embed_tokens": "fp16"})");
  EXPECT_EQ(of_layer(map, 0), (Types{"bf16", "fp32", "fp32", "fp32"}));
  EXPECT_EQ(map.weights.head(), "bf16");
  EXPECT_EQ(map.weights.embedding(), "fp16");
}

// A GGUF file's modules are called as in safetensors, and a tied head is the embedding.
TEST(DtypeMap, OtherFormatsAndTiedHeads) {
  EXPECT_EQ(of_layer(read("gguf/tiny-llama3.gguf", R"({"model.layers.2.mlp": "fp32"})"), 2),
            (Types{"fp16", "fp16", "fp32", "fp32"}));
  const DtypeMap tied = read("tiny-qwen2", R"({"model.embed_tokens": "bf16"})");
  EXPECT_EQ(tied.weights.head(), "bf16");
}

// int8 and int4 are of the layers, unless the head itself is named.
TEST(DtypeMap, IntegersAreOfTheLayers) {
  const DtypeMap all = read("tiny-llama3", R"({"": "int4", "model.layers.1.mlp": "int8"})");
  EXPECT_EQ(all.dtype, DType::kBF16);
  EXPECT_EQ(all.weights.embedding(), "bf16");
  EXPECT_EQ(all.weights.head(), "bf16");
  EXPECT_EQ(of_layer(all, 0), Types(4, "int4"));
  EXPECT_EQ(of_layer(all, 1), (Types{"int4", "int4", "int8", "int8"}));
  const DtypeMap some = read(
      "tiny-chatglm3", R"({"": "fp32", "transformer": "int8", "transformer.output_layer": "int4",
                                "transformer.encoder.layers.2.self_attention": "bf16"})");
  EXPECT_EQ(some.dtype, DType::kF32);
  EXPECT_EQ(some.weights.embedding(), "bf16");
  EXPECT_EQ(some.weights.head(), "int4");
  EXPECT_EQ(of_layer(some, 2), (Types{"bf16", "bf16", "int8", "int8"}));
  EXPECT_EQ(read("tiny-qwen2", R"({"": "int8"})").weights.head(), "bf16");  // tied

  PlacementOptions options;
  const ModelSpec model = read_model_spec(test_data("tiny-llama3"));
  set_dtypes("int4", model, options);
  EXPECT_EQ(options.dtype, DType::kBF16);
  ASSERT_TRUE(options.weight_dtypes);
  EXPECT_EQ(options.weight_dtypes->head(), "bf16");
  ASSERT_EQ(options.weight_dtypes->layers_size(), 3);
  EXPECT_EQ(options.weight_dtypes->layers(2).down(), "int4");
  set_dtypes("fp16", model, options);
  EXPECT_EQ(options.dtype, DType::kF16);
  EXPECT_FALSE(options.weight_dtypes);
}

TEST(DtypeMap, RefusesWhatItCannotGive) {
  const auto refused = [](const char* checkpoint, const char* text, const char* message) {
    expect_error(Code::kInvalidArgument, message, [&] { read(checkpoint, text); });
  };
  refused("tiny-llama3", R"({"model.layer.0": "bf16"})",
          "\"model.layer.0\" is no module of tiny-llama3; the nearest is \"model.layers.0\"");
  refused("tiny-llama3", R"({"model.layers.3": "bf16"})", "is no module of tiny-llama3");
  refused("tiny-chatglm3", R"({"transformer.outputlayer": "bf16"})",
          "the nearest is \"transformer.output_layer\"");
  refused(
      "tiny-llama3", R"({"lm_head": "int3"})",
      "the type of \"lm_head\" is \"int3\"; \"fp32\", \"bf16\", \"fp16\", \"int8\" or \"int4\" is "
      "needed");
  refused("tiny-llama3", R"({"model.embed_tokens": "int8"})",
          "\"model.embed_tokens\" is int8, but its rows are looked up and not multiplied");
  refused("tiny-llama3", R"({"": "int4", "model.norm": "int4"})", "has no matrix");
  refused("tiny-llama3", R"({"lm_head": 16})", "the type of \"lm_head\" is number");
  refused("tiny-llama3", R"({"model.norm": "bf16"})",
          "\"model.norm\" has no matrix: its values are always fp32");
  refused("tiny-llama3", R"({"model.layers.0.self_attn.k_proj": "bf16"})",
          "model.layers.0.self_attn.q_proj is fp32 and model.layers.0.self_attn.k_proj is bf16, "
          "but they are one matrix here");
  refused("tiny-qwen2", R"({"lm_head": "bf16"})", "\"lm_head\" is no module of tiny-qwen2");
  refused("tiny-llama3", "[1]", "an object is needed");
  refused("tiny-llama3", R"({"lm_head": "bf16", "lm_head": "fp32"})", "occurs twice");
  refused("tiny-llama3", ("{\"" + std::string(5000, 'x') + "\": \"bf16\"}").c_str(),
          "is no module of tiny-llama3");
  expect_error(Code::kNotFound, "/nothing.json",
               [] { read_dtype_map("/nothing.json", read_model_spec(test_data("tiny-llama3"))); });
}

// ---- the same in a placement ----

TEST(Dtypes, SummaryNamesEveryType) {
  Placement placement;
  placement.set_dtype("bf16");
  EXPECT_EQ(dtype_summary(placement), "bf16");
  const DtypeMap map = read("tiny-llama3", R"({"": "bf16", "lm_head": "fp32"})");
  *placement.mutable_weight_dtypes() = map.weights;
  EXPECT_EQ(dtype_summary(placement), "mixed bf16 fp32");
  *placement.mutable_weight_dtypes() = read("tiny-llama3", R"({"": "bf16"})").weights;
  EXPECT_EQ(dtype_summary(placement), "bf16");
}

TEST(Dtypes, IntegersNeedGpus) {
  const ModelSpec model = read_model_spec(test_data("tiny-llama3"));
  Topology topology;
  for (const int rank : {1, 2}) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host("node" + std::to_string(rank));
    info.mutable_device()->set_kind(DEVICE_KIND_CUDA);
  }
  const WeightDtypes types = layers_of(model, DType::kI4);
  Placement placement;
  *placement.mutable_weight_dtypes() = types;
  placement.add_replicas()->add_stages()->add_shards()->set_rank(2);
  EXPECT_NO_THROW(check_quantised(topology, types));
  topology.mutable_ranks(0)->mutable_device()->set_kind(DEVICE_KIND_CPU);
  expect_error(Code::kFailedPrecondition,
               "cannot use weights of int4: rank 1 on node1 is a CPU, and only GPUs compute with "
               "them; start the job on GPUs alone, or use --dtype bf16",
               [&] { check_quantised(topology, types); });
  EXPECT_NO_THROW(check_quantised(topology, layers_of(model, DType::kBF16)));
  EXPECT_NO_THROW(check_quantised(topology, placement)) << "the CPU has no part of it";
  topology.mutable_ranks(1)->mutable_device()->set_kind(DEVICE_KIND_CPU);
  expect_error(Code::kFailedPrecondition, "rank 2 on node2 is a CPU",
               [&] { check_quantised(topology, placement); });
}

TEST(Dtypes, PlacementsAreChecked) {
  const ModelSpec model = read_model_spec(test_data("tiny-llama3"));
  Placement good;
  good.set_dtype("bf16");
  *good.mutable_weight_dtypes() = read("tiny-llama3", R"({"lm_head": "fp32"})").weights;
  EXPECT_NO_THROW(validate_dtypes(model, good));
  const auto refused = [&](const char* message, const std::function<void(Placement&)>& change) {
    Placement bad = good;
    change(bad);
    expect_error(Code::kInvalidArgument, message, [&] { validate_dtypes(model, bad); });
  };
  refused("dtype is \"\", needed is fp32", [](Placement& p) { p.clear_dtype(); });
  refused("weight_dtypes.embedding is \"\"",
          [](Placement& p) { p.mutable_weight_dtypes()->clear_embedding(); });
  refused("weight_dtypes.head is \"int3\", needed is fp32, bf16, fp16, int8 or int4",
          [](Placement& p) { p.mutable_weight_dtypes()->set_head("int3"); });
  refused("weight_dtypes.embedding is \"int8\", needed is fp32, bf16 or fp16",
          [](Placement& p) { p.mutable_weight_dtypes()->set_embedding("int8"); });
  refused("dtype is \"int4\", needed is fp32, bf16 or fp16",
          [](Placement& p) { p.set_dtype("int4"); });
  refused("weight_dtypes has 2 layers, the model has 3",
          [](Placement& p) { p.mutable_weight_dtypes()->mutable_layers()->RemoveLast(); });
  refused("weight_dtypes.layers[1].down is \"x\"",
          [](Placement& p) { p.mutable_weight_dtypes()->mutable_layers(1)->set_down("x"); });
}

}  // namespace
}  // namespace trireme
