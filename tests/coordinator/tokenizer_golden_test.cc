// SPDX-License-Identifier: Apache-2.0
// Ids against those of the reference libraries: tests/data/tokenizer_cases.json for the tokenizers
// of this repository, and what lies in ../shared for real ones.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

using Ids = std::vector<int32_t>;

struct Known {
  const char* name;
  const char* family;
};
constexpr Known kTiny[] = {{"tiny-chatglm3", "chatglm"},
                           {"tiny-glm", "glm"},
                           {"tiny-llama3", "llama"},
                           {"tiny-qwen2", "qwen2"}};

TEST(TokenizerGolden, OwnTokenizersGiveTheReferenceIds) {
  const auto cases = read_json_file(test_data("tokenizer_cases.json"));
  ASSERT_GE(cases.size(), 150u);
  for (const Known& known : kTiny) {
    const auto tokenizer = load_tokenizer(test_data(known.name), known.family);
    for (const auto& item : cases) {
      const std::string text = item.at("text");
      ASSERT_EQ(tokenizer->encode(text), item.at("ids").at(known.name).get<Ids>())
          << known.name << ": " << item.at("text").dump(-1, ' ', true);
    }
  }
}

TEST(TokenizerGolden, SmolLm2) {
  const std::string path = kShared + "models/smollm2-135m";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  const auto tokenizer = load_tokenizer(path, "llama");
  EXPECT_EQ(tokenizer->size(), 49152);
  const auto reference = read_json_file(path + "/ref.json");
  for (const auto& item : reference.at("tokenizer_cases")) {
    const std::string text = item.at("text");
    EXPECT_EQ(tokenizer->encode(text), item.at("ids").get<Ids>()) << text;
    EXPECT_EQ(tokenizer->decode(item.at("ids").get<Ids>()), text);
  }
}

TEST(TokenizerGolden, Stories260k) {
  const std::string path = kShared + "models/stories260k";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  const auto tokenizer = load_tokenizer(path, "llama");
  const auto reference = read_json_file(path + "/ref.json");
  for (const auto& item : reference.at("prompts")) {
    Ids ids = tokenizer->encode(item.at("text").get<std::string>());
    ids.insert(ids.begin(), 1);
    EXPECT_EQ(ids, item.at("prompt_ids").get<Ids>());
    EXPECT_EQ(tokenizer->decode(ids), item.at("text").get<std::string>());
    EXPECT_EQ(tokenizer->decode(item.at("greedy").get<Ids>()), item.at("greedy_text"));
  }
}

TEST(TokenizerGolden, ChatGlm3) {
  const std::string path = kShared + "tokenizers/chatglm3";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  const auto tokenizer = load_tokenizer(path, "chatglm");
  EXPECT_EQ(tokenizer->size(), 64798);
  const struct {
    const char* text;
    Ids ids;
  } cases[] = {
      {"你好", {36474, 54591}},
      {"Hello, world!\n  def f(x):",
       {13755, 30932, 993, 30992, 13, 265, 3059, 279, 30946, 30948, 1528}},
      {"\n", {30910, 13}},
      {"", {}},
      {"🚀", {30910, 243, 162, 157, 131}},
      {"\t", {30910, 12}},
  };
  for (const auto& item : cases) {
    EXPECT_EQ(tokenizer->encode(item.text), item.ids) << item.text;
    EXPECT_EQ(tokenizer->decode(item.ids), item.text);
  }
  const Ids digits = tokenizer->encode("1234567890");
  ASSERT_EQ(digits.size(), 11u);
  EXPECT_EQ(digits[0], 30910);
  EXPECT_EQ(tokenizer->special("[MASK]"), 64789);
  EXPECT_EQ(tokenizer->special("<|observation|>"), 64797);
  EXPECT_EQ(tokenizer->special("</s>"), 2);
  EXPECT_EQ(tokenizer->bytes_of(31025, false), "\r");
  EXPECT_EQ(tokenizer->bytes_of(64798, false), "");  // padding of the embedding
}

}  // namespace
}  // namespace trireme
