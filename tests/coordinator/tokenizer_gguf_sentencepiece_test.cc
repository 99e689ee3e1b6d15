// SPDX-License-Identifier: Apache-2.0
// sentencepiece models that GGUF files hold as arrays, against the tokenizer.model they come from.
#include <gtest/gtest.h>

#include <cmath>

#include "coordinator/tokenizer/chat_settings.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

constexpr uint32_t kBool = 7, kString = 8, kArray = 9, kInt32 = 5, kFloat32 = 6, kUint8 = 0;
constexpr int32_t kControl = 3, kUserDefined = 4, kUnused = 5;

// The fields of a protobuf message: number, and the varint or the bytes.
struct Field {
  uint64_t number;
  uint64_t value;
  std::string bytes;
};

std::vector<Field> fields_of(const std::string& message) {
  std::vector<Field> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(message.at(at++));
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t tag = varint();
    Field field{tag >> 3, 0, ""};
    if (tag % 8 == 0) {
      field.value = varint();
    } else {
      const size_t size = tag % 8 == 5 ? 4 : varint();
      field.bytes = message.substr(at, size);
      at += size;
    }
    fields.push_back(std::move(field));
  }
  return fields;
}

// A tokenizer.model as a converter writes it to GGUF.
struct GgufPieces {
  explicit GgufPieces(const std::string& model_file) {
    for (const Field& field : fields_of(read_whole(model_file))) {
      if (field.number != 1) continue;
      texts.emplace_back();
      scores.push_back(0);
      types.push_back(1);
      for (const Field& part : fields_of(field.bytes)) {
        if (part.number == 1) texts.back() = part.bytes;
        if (part.number == 2) std::memcpy(&scores.back(), part.bytes.data(), sizeof(float));
        if (part.number == 3) types.back() = static_cast<int32_t>(part.value);
      }
    }
  }

  void add(const std::string& text, int32_t type) {
    texts.push_back(text);
    scores.push_back(-1000);
    types.push_back(type);
  }

  template <typename T>
  static std::string array(uint32_t type, const std::vector<T>& items) {
    std::string bytes = bytes_of(type) + bytes_of(uint64_t{items.size()});
    for (const T& item : items) bytes += bytes_of(item);
    return bytes;
  }

  std::string write(const TemporaryFolder& folder) const {
    GgufBuilder builder;
    builder.string("tokenizer.ggml.model", kind);
    for (const auto& [key, value] : flags) {
      builder.raw("tokenizer.ggml." + key, kBool, bytes_of(uint8_t{value}));
    }
    std::string tokens = bytes_of(kString) + bytes_of(uint64_t{texts.size()});
    for (const std::string& text : texts) tokens += GgufBuilder::text(text);
    builder.raw("tokenizer.ggml.tokens", kArray, tokens);
    builder.raw("tokenizer.ggml.scores", kArray, array(kFloat32, scores));
    builder.raw("tokenizer.ggml.token_type", kArray, array(kInt32, types));
    if (!charsmap.empty()) {
      builder.raw("tokenizer.ggml.precompiled_charsmap", kArray, array(kUint8, charsmap));
    }
    return folder.write("model.gguf", builder.build());
  }

  std::string kind = "llama";
  std::vector<std::pair<std::string, bool>> flags;
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<int32_t> types;
  std::vector<uint8_t> charsmap;
};

const std::string kTiny = test_data("tiny-chatglm3/tokenizer.model");

// Every id, and those of a thousand texts.
void expect_same(const Tokenizer& got, const Tokenizer& want) {
  ASSERT_EQ(got.size(), want.size());
  for (int32_t id = 0; id < want.size(); ++id) {
    ASSERT_EQ(got.is_special(id), want.is_special(id)) << id;
    ASSERT_EQ(got.bytes_of(id, false), want.bytes_of(id, false)) << id;
    ASSERT_EQ(got.bytes_of(id, true), want.bytes_of(id, true)) << id;
  }
  std::mt19937 random(23);
  for (int round = 0; round < 1000; ++round) {
    const std::string text = random_text(random);
    ASSERT_EQ(got.encode(text), want.encode(text)) << "round " << round << ": " << text;
  }
}

TEST(GgufSentencePiece, GivesTheIdsOfTokenizerModel) {
  const TemporaryFolder folder;
  const auto check = [&](const std::string& path) {
    SCOPED_TRACE(path);
    const GgufPieces source(path + "/tokenizer.model");
    expect_same(*load_tokenizer(source.write(folder), "llama"), *load_tokenizer(path, "llama"));
  };
  check(test_data("tiny-chatglm3"));
  if (!std::filesystem::exists(kShared)) GTEST_SKIP() << kShared << " is absent";
  check(kShared + "models/stories260k");
  check(kShared + "tokenizers/chatglm3");
}

// ChatGLM's nine tokens stand among the pieces of a GGUF file, and what fills the embedding.
TEST(GgufSentencePiece, ChatGlmHasItsTokensInTheFile) {
  const TemporaryFolder folder;
  GgufPieces source(kTiny);
  for (const char* text : {"[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>",
                           "<|assistant|>", "<|observation|>"}) {
    source.add(text, kControl);
  }
  for (int id = 521; id < 576; ++id) source.add("[PAD" + std::to_string(id) + "]", kUnused);
  const auto tokenizer = load_tokenizer(source.write(folder), "chatglm");
  const auto original = load_tokenizer(test_data("tiny-chatglm3"), "chatglm");
  expect_same(*tokenizer, *original);
  for (const char* text : {"[gMASK]", "sop", "<|observation|>", "</s>"}) {
    EXPECT_EQ(tokenizer->special(text), original->special(text)) << text;
  }
}

TEST(GgufSentencePiece, WithoutASpaceInFront) {
  const TemporaryFolder folder;
  GgufPieces source(kTiny);
  const auto with = load_tokenizer(source.write(folder), "gemma");
  source.flags = {{"add_space_prefix", false}};
  const auto without = load_tokenizer(source.write(folder), "gemma");
  EXPECT_NE(without->encode("Hello"), with->encode("Hello"));
  EXPECT_EQ(without->encode(" Hello"), with->encode("Hello"));
  EXPECT_EQ(without->decode(without->encode(" Hello")), " Hello");
  EXPECT_EQ(with->decode(with->encode("Hello")), "Hello");
}

TEST(GgufSentencePiece, UserDefinedTokensAreFoundInTheText) {
  const TemporaryFolder folder;
  GgufPieces source(kTiny);
  source.add("<tab le>", kUserDefined);
  source.add("\u2581\u2581\u2581", kUserDefined);
  const auto tokenizer = load_tokenizer(source.write(folder), "gemma");
  const auto ids = tokenizer->encode("a<tab le>b   c");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 512), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 513), 1);
  EXPECT_EQ(tokenizer->decode(ids), "a<tab le>b   c");
  EXPECT_FALSE(tokenizer->is_special(512));
}

TEST(GgufSentencePiece, TheBeginningIsAddedWhereTheFlagIsLeftOut) {
  const TemporaryFolder folder;
  GgufPieces source(kTiny);
  const auto prefix = [&] {
    const std::string file = source.write(folder);
    return read_chat_settings(file, "llama", 1, *load_tokenizer(file, "llama")).prefix;
  };
  EXPECT_EQ(prefix(), (std::vector<int32_t>{1}));
  source.flags = {{"add_bos_token", false}};
  EXPECT_EQ(prefix(), (std::vector<int32_t>{}));
}

TEST(GgufSentencePiece, BadMetadataIsRefusedByName) {
  const struct {
    const char* part;
    void (*change)(GgufPieces&);
    Code code = Code::kInvalidArgument;
  } cases[] = {
      {"512 tokens, 511 scores and 512 token types", [](auto& g) { g.scores.pop_back(); }},
      {"512 tokens, 512 scores and 513 token types", [](auto& g) { g.types.push_back(1); }},
      {"the score of token 7 is not a number", [](auto& g) { g.scores[7] = NAN; }},
      {"the type of token 9 is 7", [](auto& g) { g.types[9] = 7; }},
      {"the type of token 9 is 0", [](auto& g) { g.types[9] = 0; }},
      {"not a sound sentencepiece model", [](auto& g) { g.types[0] = 1; }},  // no unknown piece
      {"not a sound sentencepiece model", [](auto& g) { g.texts[300] = g.texts[301]; }},
      {"not a sound sentencepiece model", [](auto& g) { g.texts[300] = ""; }},
      {"not a sound sentencepiece model", [](auto& g) { g.texts[5] = "<0xZZ>"; }},
      {"not a sound sentencepiece model", [](auto& g) { g.types[5] = 1; }},  // 255 bytes
      {"not a sound sentencepiece model",
       [](auto& g) {
         g.texts.clear();
         g.scores.clear();
         g.types.clear();
       }},
      {"precompiled_charsmap is set",
       [](auto& g) {
         g.charsmap = {1, 2, 3};
       },
       Code::kUnimplemented},
      {"removes extra spaces",
       [](auto& g) {
         g.flags = {{"remove_extra_whitespaces", true}};
       },
       Code::kUnimplemented},
      {"tokenizer.ggml.model is \"t5\", only", [](auto& g) { g.kind = "t5"; },
       Code::kUnimplemented},
  };
  for (const auto& item : cases) {
    SCOPED_TRACE(item.part);
    const TemporaryFolder folder;
    GgufPieces source(kTiny);
    item.change(source);
    const std::string file = source.write(folder);
    expect_error(item.code, item.part, [&] { (void)load_tokenizer(file, "llama"); });
    expect_error(item.code, "model.gguf", [&] { (void)load_tokenizer(file, "llama"); });
  }
}

}  // namespace
}  // namespace trireme
