// SPDX-License-Identifier: Apache-2.0
#include "topology/device_map_hf.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "kernels/base/error.h"
#include "tests/support/models.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A checkpoint of tests/data with four layers.
ModelSpec tiny(const std::string& name) {
  std::ifstream file(std::string(TRIREME_SOURCE_DIR) + "/tests/data/" + name + "/config.json");
  json config = json::parse(file);
  config[config.contains("num_layers") ? "num_layers" : "num_hidden_layers"] = 4;
  config.erase("layer_types");
  const std::string folder = testing::TempDir() + std::to_string(getpid()) + "/" + name;
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << config.dump();
  ModelSpec model = read_model_spec(folder);
  std::filesystem::remove_all(folder);
  return model;
}

Placement place(const json& map, const ModelSpec& model, int workers = 4) {
  const Topology topology = make_topology(workers, 4 * kGiB);
  PlacementOptions options;
  options.max_sequences = 2;
  const Placement placement = place_by_hf_map(map, "map.json", topology, model, options);
  validate_placement(topology, model, placement);
  return placement;
}

std::string refusal(const json& map, const ModelSpec& model, int workers = 4) {
  try {
    place(map, model, workers);
  } catch (const Error& error) {
    return error.what();
  }
  return "it was taken";
}

// "rank:begin-end" of each stage.
std::string stages(const Placement& placement) {
  std::string text;
  for (const StageSpec& stage : placement.replicas(0).stages()) {
    text += (text.empty() ? "" : " ") + std::to_string(stage.shards(0).rank()) + ":" +
            std::to_string(stage.layers().begin()) + "-" + std::to_string(stage.layers().end());
  }
  return text;
}

// Four layers each.
json chatglm_map() {
  return {{"transformer.embedding", 0},        {"transformer.rotary_pos_emb", 0},
          {"transformer.encoder.layers.0", 0}, {"transformer.encoder.layers.1", 0},
          {"transformer.encoder", 2},          {"transformer.output_layer", 2}};
}

TEST(HfMap, LongestNameWinsAndLayersOfADeviceAreAStage) {
  const Placement placement = place(chatglm_map(), tiny("tiny-chatglm3"));
  EXPECT_EQ(stages(placement), "1:0-2 3:2-4");
  EXPECT_EQ(placement.spare_ranks_size(), 2);
  EXPECT_EQ(stages(place({{"", 3}}, tiny("tiny-chatglm3"))), "4:0-4");
  // The embedding alone, and the head alone.
  EXPECT_EQ(stages(place({{"model.embed_tokens", 1}, {"model", "0"}, {"lm_head", "node:2"}},
                         tiny("tiny-qwen2.5"))),
            "2:0-0 1:0-4 3:4-4");
}

TEST(HfMap, DevicesHaveTheNamesOfMaxMemory) {
  json map = chatglm_map();
  map["transformer.encoder"] = "cuda:1";
  map["transformer.output_layer"] = "node:1";
  EXPECT_EQ(stages(place(map, tiny("tiny-chatglm3"))), "1:0-2 2:2-4");
  // What is on "cpu" goes to the CPU workers that nobody named: here all but the first.
  map["transformer.encoder"] = "cpu";
  map["transformer.output_layer"] = "cpu";
  const Placement spread = place(map, tiny("tiny-chatglm3"));
  ASSERT_GE(spread.replicas(0).stages_size(), 3);
  EXPECT_EQ(spread.replicas(0).stages(0).layers().end(), 2);
}

// Where a tied head is said to be means nothing: HF's maps have it with the embedding.
TEST(HfMap, ATiedHeadIsWhereTheLastLayerIs) {
  ModelSpec model = tiny("tiny-llama3");
  model.set_tied_embeddings(true);
  json map = {{"model.embed_tokens", 0}, {"lm_head", 0},    {"model.layers.0", 0},
              {"model.layers", 1},       {"model.norm", 1}, {"model.rotary_emb", 0}};
  EXPECT_EQ(stages(place(map, model)), "1:0-1 2:1-4");
  map.erase("lm_head");
  EXPECT_EQ(stages(place(map, model)), "1:0-1 2:1-4");
}

struct Wrong {
  const char* what;
  std::function<void(json&)> change;
  const char* said;
};

TEST(HfMap, WrongMapsAreRefusedBeforeAnythingIsRead) {
  const std::string layer = "transformer.encoder.layers.";
  const Wrong cases[] = {
      {"a name of ChatGLM2's script", [](json& m) { m["lm_head"] = 0; },
       "\"lm_head\" is no module of tiny-chatglm3; the nearest is \"transformer.output_layer\""},
      {"another family's layer", [](json& m) { m["model.layers.2"] = 0; },
       "the nearest is \"transformer.encoder.layers.2\""},
      {"a layer too many", [&](json& m) { m[layer + "4"] = 0; }, "layers.4\" is no module"},
      {"a missing module", [](json& m) { m.erase("transformer.output_layer"); },
       "it gives no device to transformer.output_layer.weight"},
      {"missing layers", [](json& m) { m.erase("transformer.encoder"); }, "more tensors"},
      {"a worker too many", [](json& m) { m["transformer.encoder"] = 4; },
       "which no worker is called; the job has 0 to 3"},
      {"another host", [](json& m) { m["transformer.encoder"] = "host7:0"; },
       "which no worker is called"},
      {"disk", [](json& m) { m["transformer.encoder"] = "disk"; }, "nothing is offloaded here"},
      {"a list",
       [](json& m) {
         m["transformer.encoder"] = {0, 1};
       },
       "is on array"},
      {"null", [](json& m) { m["transformer.encoder"] = nullptr; }, "is on null"},
      {"minus one", [](json& m) { m["transformer.encoder"] = -1; }, "which no worker is called"},
      {"a split layer", [&](json& m) { m[layer + "1.mlp"] = 2; },
       "but transformer.encoder.layers.1 is computed by one stage"},
      {"a device twice", [&](json& m) { m[layer + "3"] = 0; },
       "device 0 has transformer.encoder.layers.1 and transformer.encoder.layers.3, but "
       "transformer.encoder.layers.2 between them is on 2"},
  };
  for (const Wrong& wrong : cases) {
    json map = chatglm_map();
    wrong.change(map);
    const std::string message = refusal(map, tiny("tiny-chatglm3"));
    EXPECT_NE(message.find(wrong.said), std::string::npos) << wrong.what << ": " << message;
  }
}

// The map that ChatGLM's own script makes: everything but layers on the first card.
TEST(HfMap, ARefusalHoldsAValidMapNearIt) {
  json map = chatglm_map();
  map["transformer.encoder.final_layernorm"] = 0;
  map["transformer.output_layer"] = 0;
  const std::string message = refusal(map, tiny("tiny-chatglm3"));
  EXPECT_NE(
      message.find("A valid map near it: transformer.embedding.word_embeddings, layers 0-1 on "
                   "0; layers 2-3, transformer.encoder.final_layernorm, "
                   "transformer.output_layer on 2"),
      std::string::npos)
      << message;
}

TEST(Accelerate, StagesFollowItsMap) {
  const ModelSpec model = tiny("tiny-chatglm3");
  const Topology topology = make_topology(2, 4 * kGiB);
  PlacementOptions options;
  options.max_sequences = 2;
  Placement placement =
      place_by_accelerate(AccelerateStrategy::kSequential, topology, model, options);
  EXPECT_EQ(stages(placement), "1:0-4");
  placement = place_by_accelerate(AccelerateStrategy::kBalanced, topology, model, options);
  validate_placement(topology, model, placement);
  EXPECT_EQ(placement.replicas(0).stages_size(), 2);
  options.max_memory_bytes = {{"0", 1000}, {"1", 1000}};
  try {
    place_by_accelerate(AccelerateStrategy::kSequential, topology, model, options);
    FAIL() << "it fits nowhere";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kResourceExhausted);
    EXPECT_NE(std::string(error.what()).find("on disk"), std::string::npos);
  }
}

}  // namespace
}  // namespace trireme
