// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "coordinator/tokenizer/sentencepiece_loader.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/utf8.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

using Ids = std::vector<int32_t>;

// sentencepiece itself, without what we build on its pieces.
class Reference {
 public:
  explicit Reference(const std::string& file) {
    const std::string bytes = read_whole(file);
    model_ = sentencepiece_module().open(bytes.data(), bytes.size(), nullptr,
                                         [](void*, const char*, size_t) {});
  }
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;
  ~Reference() { sentencepiece_module().close(model_); }

  int32_t size() const { return sentencepiece_module().size(model_); }
  TriremePieceKind kind(int32_t id) const {
    return sentencepiece_module().piece(model_, id, nullptr, [](void*, const char*, size_t) {});
  }
  std::string decode(const Ids& ids) const {
    std::string text;
    sentencepiece_module().decode(model_, ids.data(), ids.size(), &text, append);
    return text;
  }

 private:
  static void append(void* to, const char* bytes, size_t size) {
    static_cast<std::string*>(to)->append(bytes, size);
  }
  void* model_;
};

// sentencepiece writes one U+FFFD for each broken byte, we one for each maximal subpart.
std::string collapse(const std::string& text) {
  const std::string two = std::string(kReplacementCharacter) + std::string(kReplacementCharacter);
  std::string result = text;
  for (size_t at; (at = result.find(two)) != std::string::npos;) result.erase(at, 3);
  return result;
}

void compare_decoding(const std::string& file, const std::string& folder, const char* family) {
  const Reference reference(file);
  const auto tokenizer = load_tokenizer(folder, family);
  std::mt19937 random(5);
  int broken = 0;
  for (int round = 0; round < 3000; ++round) {
    Ids ids;
    while (ids.size() < 1 + random() % 12) {
      // Bytes and other pieces, and the pieces of words that begin with a space.
      const auto id = static_cast<int32_t>(random() % (random() % 2 ? reference.size() : 300));
      if (reference.kind(id) != kPieceControl) ids.push_back(id);
    }
    if (random() % 3 == 0) ids = tokenizer->encode(random_text(random));
    const std::string expected = reference.decode(ids);
    broken += expected.find(kReplacementCharacter) != std::string::npos;
    ASSERT_EQ(collapse(tokenizer->decode(ids)), collapse(expected)) << file << " round " << round;
  }
  EXPECT_GT(broken, 100);
}

TEST(TokenizerSentencePiece, DecodesAsSentencePieceDoes) {
  compare_decoding(test_data("tiny-chatglm3/tokenizer.model"), test_data("tiny-chatglm3"),
                   "chatglm");
  const std::string shared = kShared + "tokenizers/chatglm3";
  if (!std::filesystem::exists(shared)) GTEST_SKIP() << shared << " is absent";
  compare_decoding(shared + "/tokenizer.model", shared, "chatglm");
  const std::string stories = kShared + "models/stories260k";
  compare_decoding(stories + "/tokenizer.model", stories, "llama");
}

TEST(TokenizerSentencePiece, DropsTheDummySpaceOfEachRun) {
  const auto tokenizer = load_tokenizer(test_data("tiny-chatglm3"), "chatglm");
  const Ids hello = tokenizer->encode("Hello");
  const Ids space = {432};  // U+2581 alone
  EXPECT_EQ(tokenizer->decode(hello), "Hello");
  EXPECT_EQ(tokenizer->decode(space), "");
  EXPECT_EQ(tokenizer->decode(Ids{432, 432}), " ");
  EXPECT_EQ(tokenizer->bytes_of(432, true), "");
  EXPECT_EQ(tokenizer->bytes_of(432, false), " ");
  Ids twice = hello;
  twice.push_back(*tokenizer->special("<|user|>"));
  twice.insert(twice.end(), hello.begin(), hello.end());
  EXPECT_EQ(tokenizer->decode(twice), "HelloHello");
}

TEST(TokenizerSentencePiece, ChatGlmAppendsItsTokens) {
  const auto tokenizer = load_tokenizer(test_data("tiny-chatglm3"), "chatglm");
  EXPECT_EQ(tokenizer->size(), 521);
  const char* names[] = {"[MASK]",   "[gMASK]",       "[sMASK]",        "sop", "eop", "<|system|>",
                         "<|user|>", "<|assistant|>", "<|observation|>"};
  for (int32_t i = 0; i < 9; ++i) {
    EXPECT_EQ(tokenizer->special(names[i]), 512 + i);
    EXPECT_TRUE(tokenizer->is_special(512 + i));
    EXPECT_EQ(tokenizer->bytes_of(512 + i, false), "");
  }
  EXPECT_EQ(tokenizer->special("</s>"), 2);
  EXPECT_EQ(tokenizer->special("Hello"), std::nullopt);
  EXPECT_EQ(load_tokenizer(test_data("tiny-chatglm3"), "llama")->size(), 512);
}

TEST(TokenizerSentencePiece, TextOfASpecialTokenStaysOrdinary) {
  const auto tokenizer = load_tokenizer(test_data("tiny-chatglm3"), "chatglm");
  const std::string text = "hi</s><|user|>\n<s>[gMASK]sop<unk><|assistant|><0x41>";
  const Ids ids = tokenizer->encode(text);
  for (int32_t id : ids) EXPECT_FALSE(tokenizer->is_special(id)) << id;
  EXPECT_EQ(tokenizer->decode(ids), text);
}

TEST(TokenizerSentencePiece, RandomTextsComeBack) {
  const auto tokenizer = load_tokenizer(test_data("tiny-chatglm3"), "chatglm");
  std::mt19937 random(13);
  for (int round = 0; round < 1500; ++round) {
    const std::string text = random_text(random);
    if (text.find("\u2581") != std::string::npos) continue;  // is a space to sentencepiece
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(text)), text) << "round " << round;
  }
}

TEST(TokenizerSentencePiece, BadFilesAreRefusedByName) {
  const std::string good = read_whole(test_data("tiny-chatglm3/tokenizer.model"));
  const TemporaryFolder folder;
  const std::string files[] = {"", "\n", good.substr(0, good.size() / 2),
                               "\n" + std::string(1000, '\xFF'), good.substr(0, 100)};
  for (const std::string& bytes : files) {
    folder.write("tokenizer.model", bytes);
    expect_error(Code::kInvalidArgument, folder.path() + "/tokenizer.model",
                 [&] { (void)load_tokenizer(folder.path(), "chatglm"); });
  }
  // Sparse: only its size is looked at.
  std::filesystem::resize_file(folder.path() + "/tokenizer.model", (64ull << 20) + 1);
  expect_error(Code::kInvalidArgument, "67108865 bytes",
               [&] { (void)load_tokenizer(folder.path(), "chatglm"); });
}

// Of a model that is not ChatGLM's, what the files beside it add.
TEST(TokenizerSentencePiece, TokensAddedBesideTheModel) {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", read_whole(test_data("tiny-chatglm3/tokenizer.model")));
  folder.write("added_tokens.json", R"({"<think>": 512, "<|im_end|>": 514, "<|im_start|>": 513})");
  folder.write(
      "special_tokens_map.json",
      R"({"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": ["<|im_start|>"]})");
  folder.write("tokenizer_config.json",
               R"({"added_tokens_decoder": {"2": {"content": "</s>", "special": true},
                   "515": {"content": "<|x|>", "special": true}}})");
  const auto tokenizer = load_tokenizer(folder.path(), "llama");
  EXPECT_EQ(tokenizer->size(), 516);
  EXPECT_EQ(tokenizer->special("<|im_end|>"), 514);
  EXPECT_EQ(tokenizer->special("<|x|>"), 515);
  EXPECT_EQ(tokenizer->special("<think>"), std::nullopt);
  const auto plain = load_tokenizer(test_data("tiny-chatglm3"), "llama");
  Ids expected = plain->encode("a");
  expected.push_back(512);
  for (int32_t id : plain->encode("b<|im_end|></s>")) expected.push_back(id);
  const Ids ids = tokenizer->encode("a<think>b<|im_end|></s>");
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(tokenizer->decode(ids), "a<think> b<|im_end|></s>");  // each part has its dummy space
}

TEST(TokenizerSentencePiece, AddedTokensThatDoNotFitAreRefused) {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", read_whole(test_data("tiny-chatglm3/tokenizer.model")));
  const struct {
    const char* config;
    const char* part;
    Code code = Code::kInvalidArgument;
  } cases[] = {
      {R"({"2": {"content": "<|x|>", "special": true}})", "where the piece \"</s>\" is"},
      {R"({"99999999": {"content": "<|x|>", "special": true}})", "where 512 pieces end"},
      {R"({"-1": {"content": "<|x|>"}})", "found the key \"-1\", needs an id"},
      {R"({"5x": {"content": "<|x|>"}})", "found the key \"5x\", needs an id"},
      {R"({"512": {"content": ""}})", "the added token \"\""},
      {R"({"512": {"special": true}})", "\"content\" is missing"},
      {R"({"512": {"content": "<x>", "lstrip": true}})", "lstrip is not supported"},
      {R"([])", "needs an object"},
      {R"({"432": {"content": "\u2581", "special": true}})", "a text could hold it all the same",
       Code::kUnimplemented},
  };
  for (const auto& item : cases) {
    SCOPED_TRACE(item.config);
    folder.write("tokenizer_config.json",
                 "{\"added_tokens_decoder\": " + std::string(item.config) + "}");
    expect_error(item.code, item.part, [&] { (void)load_tokenizer(folder.path(), "llama"); });
    expect_error(item.code, folder.path(), [&] { (void)load_tokenizer(folder.path(), "llama"); });
  }
}

}  // namespace
}  // namespace trireme
