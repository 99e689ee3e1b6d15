// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

constexpr uint32_t kBool = 7, kString = 8, kArray = 9, kInt32 = 5;

// The tokenizer of tests/data/tiny-qwen2 as a converter writes it to GGUF.
struct GgufTokenizer {
  GgufTokenizer() {
    const nlohmann::json json = tiny_json();
    tokens.resize(483);
    for (const auto& [text, id] : json["model"]["vocab"].items()) tokens[id.get<size_t>()] = text;
    types.assign(483, 1);
    for (const auto& token : json["added_tokens"]) {
      tokens[token["id"].get<size_t>()] = token["content"];
      types[token["id"].get<size_t>()] = 3;
    }
    for (const auto& merge : json["model"]["merges"]) {
      merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    }
  }

  static std::string array(const std::vector<std::string>& items) {
    std::string bytes = bytes_of(kString) + bytes_of(uint64_t{items.size()});
    for (const std::string& item : items) bytes += GgufBuilder::text(item);
    return bytes;
  }

  std::string write(const TemporaryFolder& folder) const {
    GgufBuilder builder;
    builder.string("general.architecture", "qwen2");
    if (!model.empty()) builder.string("tokenizer.ggml.model", model);
    if (!pre.empty()) builder.string("tokenizer.ggml.pre", pre);
    if (!chat_template.empty()) builder.string("tokenizer.chat_template", chat_template);
    if (adds_bos) builder.raw("tokenizer.ggml.add_bos_token", kBool, "\1");
    builder.raw("tokenizer.ggml.tokens", kArray, array(tokens));
    builder.raw("tokenizer.ggml.merges", kArray, array(merges));
    std::string numbers = bytes_of(kInt32) + bytes_of(uint64_t{types.size()});
    for (int32_t type : types) numbers += bytes_of(type);
    builder.raw("tokenizer.ggml.token_type", kArray, numbers);
    return folder.write("model.gguf", builder.build());
  }

  std::string model = "gpt2";
  std::string pre = "qwen2";
  std::string chat_template;
  bool adds_bos = false;
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;
};

TEST(TokenizerGguf, GivesTheIdsOfTokenizerJson) {
  const TemporaryFolder folder;
  const auto gguf = load_tokenizer(GgufTokenizer().write(folder), "qwen2");
  const auto json = load_tokenizer(test_data("tiny-qwen2"), "qwen2");
  EXPECT_EQ(gguf->size(), json->size());
  EXPECT_EQ(gguf->special("<|im_end|>"), json->special("<|im_end|>"));
  std::mt19937 random(17);
  for (int round = 0; round < 500; ++round) {
    const std::string text = random_text(random);
    ASSERT_EQ(gguf->encode(text), json->encode(text)) << "round " << round;
  }
}

// Every byte and every pair of bytes is a token, so that no cut goes unseen.
TEST(TokenizerGguf, CutsAsTheNamedPreTokenizer) {
  const TemporaryFolder folder;
  GgufTokenizer source;
  source.tokens.clear();
  source.merges.clear();
  for (int byte = 0; byte < 256; ++byte) {
    source.tokens.push_back(byte_character(static_cast<uint8_t>(byte)));
  }
  for (int pair = 0; pair < 1 << 16; ++pair) {
    source.merges.push_back(source.tokens[pair >> 8] + " " + source.tokens[pair & 255]);
    source.tokens.push_back(source.tokens[pair >> 8] + source.tokens[pair & 255]);
  }
  source.types.assign(source.tokens.size(), 1);
  const auto cases = read_json_file(test_data("pre_tokenizer_cases.json"));
  const std::pair<const char*, const char*> names[] = {{"gpt-2", "gpt-2"},
                                                       {"smollm", "smollm"},
                                                       {"llama-bpe", "llama-bpe"},
                                                       {"llama-v3", "llama-bpe"},
                                                       {"falcon3", "llama-bpe"},
                                                       {"chatglm-bpe", "llama-bpe"},
                                                       {"glm4", "llama-bpe"},
                                                       {"qwen2", "qwen2"},
                                                       {"tekken", "tekken"},
                                                       {"deepseek-r1-qwen", "qwen2"},
                                                       {"deepseek-coder", "deepseek-coder"}};
  for (const auto& [name, reference] : names) {
    source.pre = name;
    const auto tokenizer = load_tokenizer(source.write(folder), "qwen2");
    for (const auto& item : cases) {
      ASSERT_EQ(tokenizer->encode(item.at("text").get<std::string>()),
                item.at("ids").at(reference).get<std::vector<int32_t>>())
          << name << ": " << item.at("text").dump(-1, ' ', true);
    }
  }
}

TEST(TokenizerGguf, UserDefinedTokensAreFoundInTheText) {
  const TemporaryFolder folder;
  GgufTokenizer source;
  source.tokens.push_back("<think>");
  source.types.push_back(4);
  const auto tokenizer = load_tokenizer(source.write(folder), "qwen2");
  EXPECT_EQ(tokenizer->encode("<think>"), (std::vector<int32_t>{483}));
  EXPECT_FALSE(tokenizer->is_special(483));
}

TEST(TokenizerGguf, ChatSettingsComeFromTheMetadata) {
  const TemporaryFolder folder;
  GgufTokenizer source;
  source.chat_template =
      "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% "
      "endif %}"
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% "
      "endfor %}"
      "{{ '<|im_start|>assistant\n' }}";
  source.adds_bos = true;
  const std::string file = source.write(folder);
  const auto tokenizer = load_tokenizer(file, "qwen2");
  const auto chat = make_chat_format(file, "qwen2", 480, *tokenizer);
  EXPECT_EQ(chat->name(), std::string("chatml"));
  EXPECT_EQ(chat->plain("a").front(), 480);
  const ChatTurn user{"user", "hi"};
  const std::vector<ChatTurn> alone = {user};
  const std::vector<ChatTurn> both = {{"system", "Be kind."}, user};
  EXPECT_EQ(chat->render(alone), chat->render(both));
}

TEST(TokenizerGguf, BadMetadataIsRefusedByName) {
  const struct {
    const char* part;
    void (*change)(GgufTokenizer&);
    Code code = Code::kInvalidArgument;
  } cases[] = {
      {"tokenizer.ggml.pre is \"bloom\", known are smollm", [](auto& g) { g.pre = "bloom"; }},
      {"tokenizer.ggml.pre is missing", [](auto& g) { g.pre = ""; }},
      {"tokenizer.ggml.model is missing", [](auto& g) { g.model = ""; }},
      {"tokenizer.ggml.model is \"bert\"", [](auto& g) { g.model = "bert"; }, Code::kUnimplemented},
      {"token types", [](auto& g) { g.types.pop_back(); }},
      {"has two ids", [](auto& g) { g.tokens[5] = g.tokens[6]; }},
      {"two parts", [](auto& g) { g.merges[0] = "abc"; }},
      {"in the vocabulary", [](auto& g) { g.merges[0] = "\xFF \xFE"; }},
      {"has no text", [](auto& g) { g.tokens[482] = ""; }},
  };
  for (const auto& item : cases) {
    SCOPED_TRACE(item.part);
    const TemporaryFolder folder;
    GgufTokenizer source;
    item.change(source);
    const std::string file = source.write(folder);
    expect_error(item.code, item.part, [&] { (void)load_tokenizer(file, "qwen2"); });
    expect_error(item.code, "model.gguf", [&] { (void)load_tokenizer(file, "qwen2"); });
  }
  expect_error(Code::kNotFound, "/absent", [] { (void)load_tokenizer("/absent", "qwen2"); });
}

}  // namespace
}  // namespace trireme
