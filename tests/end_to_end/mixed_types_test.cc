// SPDX-License-Identifier: Apache-2.0
// Weights of several types in one model: bit-identical rows at every pipeline split, chunking and
// company, as with one type; and a map that gives every module one type is that type.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/rank_job.h"
#include "tests/support/reference.h"
#include "tests/worker/model_files.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

constexpr uint64_t kSequence = 1;
constexpr double kBf16Error = 4e-2;  // relative norm of all rows, as for bf16 alone

struct Mixed {
  const char* checkpoint;
  std::string map;
};

// Every kind of matrix differs from its neighbours somewhere, and the cache from both.
std::string llama_map(const char* more) {
  return std::string(R"({"": "bf16", "model.layers.0": "fp32", "model.layers.0.mlp": "fp16",
    "model.layers.1.self_attn.o_proj": "fp32", "model.layers.1.mlp.down_proj": "fp32")") +
         more + "}";
}

std::vector<Mixed> mixed_cases() {
  return {
      {"tiny-llama3", llama_map(R"(, "lm_head": "fp32", "model.layers.2.mlp": "fp32")")},
      {"tiny-qwen3", llama_map(R"(, "model.embed_tokens": "fp32")")},
      {"tiny-gemma2", llama_map(R"(, "model.embed_tokens": "fp16")")},
      {"tiny-chatglm3-prefix",
       R"({"": "fp32", "transformer.encoder.layers.0": "bf16", "transformer.output_layer": "bf16",
           "transformer.encoder.layers.1.self_attention.query_key_value": "bf16",
           "transformer.encoder.layers.2.mlp.dense_4h_to_h": "bf16"})"},
  };
}

class Job {
 public:
  Job(const std::string& checkpoint, const std::string& dtype)
      : path_(find_checkpoint(checkpoint).value()),
        model_(read_model_spec(path_)),
        dtype_(dtype.starts_with("{") ? folder_.write("types.json", dtype) : dtype) {
    const ReferencePrompt prompt = read_reference(checkpoint).front();
    prompt_length_ = static_cast<int32_t>(prompt.prompt.size());
    tokens_ = prompt.prompt;
    tokens_.insert(tokens_.end(), prompt.greedy.begin(), prompt.greedy.end());
  }

  // rank_job.cc throws unless every rank allocates what was predicted for it.
  Logits run(int tp, int pp, int32_t chunk, int32_t company) const {
    RankJobOptions options;
    options.model_path = path_;
    options.dtype = dtype_;
    options.tp = tp;
    options.pp = pp;
    return run_local(options, make_script(model_, tokens_, prompt_length_, chunk, company));
  }

  int32_t num_layers() const { return model_.num_layers(); }

 private:
  TemporaryFolder folder_;
  std::string path_;
  ModelSpec model_;
  std::string dtype_;
  int32_t prompt_length_ = 0;
  std::vector<int32_t> tokens_;
};

bool identical(const Logits& a, const Logits& b) {
  for (const auto& [key, row] : a) {
    if (key.first != kSequence) continue;
    const auto other = b.find(key);
    if (other == b.end() ||
        std::memcmp(row.data(), other->second.data(), row.size() * sizeof(float)) != 0) {
      return false;
    }
  }
  return true;
}

double relative_error(const Logits& found, const Logits& expected) {
  double square = 0, whole = 0;
  for (const auto& [key, row] : expected) {
    const std::vector<float>& other = found.at(key);
    for (size_t i = 0; i < row.size(); ++i) {
      square += std::pow(double{other[i]} - row[i], 2);
      whole += std::pow(double{row[i]}, 2);
    }
  }
  return std::sqrt(square / whole);
}

class SplitMixed : public testing::TestWithParam<int> {};  // of mixed_cases()

INSTANTIATE_TEST_SUITE_P(All, SplitMixed, testing::Range(0, 4), [](const auto& row) {
  std::string name = mixed_cases()[static_cast<size_t>(row.param)].checkpoint;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
});

TEST_P(SplitMixed, IsTheSameAtEverySplit) {
  const Mixed mixed = mixed_cases()[static_cast<size_t>(GetParam())];
  const Job job(mixed.checkpoint, mixed.map);
  const Logits fp32 = Job(mixed.checkpoint, "fp32").run(1, 1, 0, 0);
  const Logits bf16 = Job(mixed.checkpoint, "bf16").run(1, 1, 0, 0);
  for (const int tp : {1, 2, 3}) {
    const Logits base = job.run(tp, 1, 0, 0);
    EXPECT_LE(relative_error(base, fp32), kBf16Error);
    EXPECT_FALSE(identical(base, fp32)) << "nothing is bf16";
    EXPECT_FALSE(identical(base, bf16)) << "everything is bf16";
    for (int pp = 1; pp <= job.num_layers(); ++pp) {
      for (const auto& [chunk, company] :
           std::vector<std::pair<int32_t, int32_t>>{{0, 7}, {5, 3}}) {
        EXPECT_TRUE(identical(base, job.run(tp, pp, chunk, company)))
            << "tp " << tp << ", pp " << pp << ", chunk " << chunk << ", company " << company;
      }
    }
  }
}

// By map, module by module, and by name.
TEST(MixedTypes, OneTypeByMapIsThatType) {
  for (const char* type : {"fp32", "bf16", "fp16"}) {
    for (const char* checkpoint : {"tiny-llama3", "tiny-chatglm3-prefix-mlp"}) {
      std::string map = R"({"": "TYPE", "model": "TYPE", "lm_head": "TYPE"})";
      if (std::string(checkpoint) != "tiny-llama3") map = R"({"": "TYPE", "transformer": "TYPE"})";
      for (size_t at = map.find("TYPE"); at != std::string::npos; at = map.find("TYPE")) {
        map.replace(at, 4, type);
      }
      for (const int tp : {1, 2}) {
        EXPECT_TRUE(identical(Job(checkpoint, type).run(tp, 2, 0, 0),
                              Job(checkpoint, map).run(tp, 2, 0, 0)))
            << checkpoint << " in " << type << ", tp " << tp;
      }
    }
  }
}

}  // namespace
}  // namespace trireme
