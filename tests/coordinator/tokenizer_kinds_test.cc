// SPDX-License-Identifier: Apache-2.0
// The kinds of tokenizer files beside tokenizer.json of bytes and sentencepiece, and which of them
// is taken where several lie in a folder.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::json;

std::string base64(const std::string& bytes) {
  constexpr std::string_view kLetters =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i) {
      bits = bits << 8 | (at + i < bytes.size() ? static_cast<uint8_t>(bytes[at + i]) : 0);
    }
    for (size_t i = 0; i < 4; ++i) {
      text += at + i > bytes.size() ? '=' : kLetters[bits >> (18 - 6 * i) & 63];
    }
  }
  return text;
}

// The tokens of tests/data/tiny-qwen2 by id, without those behind its merges.
std::vector<std::string> tiny_tokens() {
  const Json vocabulary = tiny_json()["model"]["vocab"];
  std::vector<std::string> tokens(vocabulary.size());
  for (const auto& [text, id] : vocabulary.items()) tokens.at(id.get<size_t>()) = text;
  return tokens;
}

std::string tiny_list() {
  std::string list;
  size_t rank = 0;
  for (const std::string& token : tiny_tokens()) {
    list += base64(alphabet_to_bytes(token).value()) + " " + std::to_string(rank++) + "\n";
  }
  return list;
}

constexpr const char* kQwenClass = R"({"tokenizer_class": "QWenTokenizer"})";
constexpr const char* kGlmClass = R"({"tokenizer_class": "ChatGLM4Tokenizer"})";

void expect_same_ids(const Tokenizer& one, const Tokenizer& other) {
  std::mt19937 random(29);
  for (int round = 0; round < 500; ++round) {
    const std::string text = random_text(random);
    ASSERT_EQ(one.encode(text), other.encode(text)) << "round " << round << ": " << text;
  }
}

// A trained vocabulary has its tokens in the order of its merges, so both forms give the same.
TEST(TokenizerKinds, ATiktokenListGivesTheIdsOfTokenizerJson) {
  const TemporaryFolder folder;
  folder.write("qwen.tiktoken", tiny_list());
  folder.write("tokenizer_config.json", kQwenClass);
  const auto tokenizer = load_tokenizer(folder.path(), "qwen");
  EXPECT_EQ(tokenizer->size(), 480 + 208);
  EXPECT_EQ(tokenizer->special("<|endoftext|>"), 480);
  EXPECT_EQ(tokenizer->special("<|extra_204|>"), 687);
  const auto json = load_tokenizer(test_data("tiny-qwen2"), "qwen2");
  expect_same_ids(*tokenizer, *json);
}

TEST(TokenizerKinds, Glm4sListHasItsSpecialTokens) {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", tiny_list());
  folder.write("tokenizer_config.json", kGlmClass);
  auto tokenizer = load_tokenizer(folder.path(), "chatglm");
  EXPECT_EQ(tokenizer->size(), 494);
  EXPECT_EQ(tokenizer->special("<|endoftext|>"), 480);
  EXPECT_EQ(tokenizer->special("[gMASK]"), 482);
  EXPECT_EQ(tokenizer->special("<|observation|>"), 489);
  const std::string text = "hi[gMASK]<sop><|user|>\n";
  for (int32_t id : tokenizer->encode(text)) EXPECT_FALSE(tokenizer->is_special(id));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  // What the config says goes first; it may leave gaps, and have tokens that are not special.
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "ChatGLM4Tokenizer",
      "added_tokens_decoder": {"481": {"content": "<|user|>", "special": true},
                               "485": {"content": "<think>", "special": false}}})");
  tokenizer = load_tokenizer(folder.path(), "chatglm");
  EXPECT_EQ(tokenizer->size(), 486);
  EXPECT_EQ(tokenizer->special("<|user|>"), 481);
  EXPECT_EQ(tokenizer->special("[gMASK]"), std::nullopt);
  EXPECT_EQ(tokenizer->encode("<think>"), Ids{485});
}

// Llama 3's list is known by its length; it names no class.
TEST(TokenizerKinds, Llama3sListIsKnownByItsLength) {
  const TemporaryFolder folder;
  std::string list;
  for (int rank = 0; rank < 128000; ++rank) {
    std::string bytes(1, static_cast<char>(rank & 0xFF));
    for (int rest = rank >> 8; rest > 0; rest >>= 8) bytes += static_cast<char>(rest & 0xFF);
    list += base64(bytes) + " " + std::to_string(rank) + "\n";
  }
  folder.write("tokenizer.model", list);
  const auto tokenizer = load_tokenizer(folder.path(), "llama");
  EXPECT_EQ(tokenizer->size(), 128256);
  EXPECT_EQ(tokenizer->special("<|begin_of_text|>"), 128000);
  EXPECT_EQ(tokenizer->special("<|eot_id|>"), 128009);
  EXPECT_EQ(tokenizer->special("<|reserved_special_token_247|>"), 128255);
  // Three digits, and one: a pair whose token there is.
  EXPECT_EQ(tokenizer->encode("1234"), (Ids{0x3231, 0x33, 0x34}));
}

TEST(TokenizerKinds, BadListsAreRefusedByName) {
  const std::string good = tiny_list();
  const std::string letters(2000, 'A');
  const struct {
    const char* name;
    std::string list;
    const char* part;
  } cases[] = {
      {"empty", "", "it has 0 bytes"},
      {"no rank", good + "IQ==\n", "line 481 is no token in base64"},
      {"not base64", good + "I!== 480\n", "line 481 is no token in base64"},
      {"cut base64", good + "IQ= 480\n", "line 481 is no token in base64"},
      {"bits left over", good + "IR== 480\n", "line 481 is no token in base64"},
      {"padding inside", good + "IQ==IQ== 480\n", "line 481 is no token in base64"},
      {"empty line", good + "\n", "line 481 is no token in base64"},
      {"long token", good + letters + " 480\n", "line 481 is no token in base64"},
      {"hole", good + "AAAAAAAA 481\n", "has the rank \"481\", one below 481"},
      {"negative", good + "AAAAAAAA -1\n", "has the rank \"-1\""},
      {"no number", good + "AAAAAAAA x\n", "has the rank \"x\""},
      {"huge", good + "AAAAAAAA 99999999999999999999\n", "has the rank"},
      {"trailing", good + "AAAAAAAA 480 \n", "has the rank"},
      {"twice", good + "AAAAAAAA 3\n", "a rank that another line has too"},
      {"token twice", good + good.substr(0, good.find(' ')) + " 480\n", "has two ids"},
      {"few bytes", "IQ== 0\nIg== 1\n", "of the 256 bytes have no token"},
  };
  for (const auto& item : cases) {
    SCOPED_TRACE(item.name);
    const TemporaryFolder folder;
    folder.write("tokenizer_config.json", kGlmClass);
    folder.write("tokenizer.model", item.list);
    expect_error(Code::kInvalidArgument, item.part,
                 [&] { (void)load_tokenizer(folder.path(), "chatglm"); });
    expect_error(Code::kInvalidArgument, "tokenizer.model",
                 [&] { (void)load_tokenizer(folder.path(), "chatglm"); });
  }
}

TEST(TokenizerKinds, AListWhosePatternIsNotKnownIsRefused) {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", tiny_list());
  for (const char* family : {"llama", "chatglm", "qwen2"}) {
    expect_error(Code::kUnimplemented, "its list of 480 tokens does not say by which pattern",
                 [&] { (void)load_tokenizer(folder.path(), family); });
  }
}

void write_vocab_merges(const TemporaryFolder& folder) {
  const Json json = tiny_json();
  std::string merges = "#version: 0.2\n";
  for (const auto& merge : json["model"]["merges"]) {
    merges += merge[0].get<std::string>() + " " + merge[1].get<std::string>() + "\n";
  }
  folder.write("vocab.json", json["model"]["vocab"].dump());
  folder.write("merges.txt", merges);
}

TEST(TokenizerKinds, VocabAndMergesGiveTheIdsOfTokenizerJson) {
  const TemporaryFolder folder;
  write_vocab_merges(folder);
  folder.write("added_tokens.json", R"({"<|im_start|>": 481, "<|im_end|>": 482, "<think>": 483})");
  folder.write("special_tokens_map.json",
               R"({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})");
  const auto by_family = load_tokenizer(folder.path(), "qwen2");
  const auto json = load_tokenizer(test_data("tiny-qwen2"), "qwen2");
  expect_same_ids(*by_family, *json);
  EXPECT_EQ(by_family->special("<|im_end|>"), 482);
  EXPECT_EQ(by_family->encode("<think>"), Ids{483});
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2TokenizerFast"})");
  expect_same_ids(*load_tokenizer(folder.path(), "llama"), *json);
  // GPT-2's pattern keeps no sign before a word, and its text is not normalised.
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "GPT2Tokenizer"})");
  const auto gpt2 = load_tokenizer(folder.path(), "llama");
  EXPECT_EQ(gpt2->decode(gpt2->encode("e\u0301")), "e\u0301");
  folder.write("tokenizer_config.json",
               R"({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true})");
  EXPECT_EQ(load_tokenizer(folder.path(), "llama")->encode("the"), gpt2->encode(" the"));
  EXPECT_NE(gpt2->encode("the"), gpt2->encode(" the"));
}

// A special token of GPT-2 stands in the vocabulary itself; only its name tells.
TEST(TokenizerKinds, ASpecialTokenInTheVocabulary) {
  const TemporaryFolder folder;
  write_vocab_merges(folder);
  folder.write("tokenizer_config.json",
               R"({"tokenizer_class": "GPT2Tokenizer", "eos_token": "Ġthe", "pad_token": "!"})");
  const auto tokenizer = load_tokenizer(folder.path(), "llama");
  const auto id = tokenizer->special("Ġthe");
  ASSERT_TRUE(id.has_value());
  const Ids ids = tokenizer->encode("of the!");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *id), 0);
  EXPECT_EQ(tokenizer->decode(ids), "of the!");
}

TEST(TokenizerKinds, BadVocabAndMergesAreRefusedByName) {
  const TemporaryFolder folder;
  write_vocab_merges(folder);
  expect_error(Code::kUnimplemented, "the class \"\" of the family llama is not known",
               [&] { (void)load_tokenizer(folder.path(), "llama"); });
  folder.write("merges.txt", "#version: 0.2\na b c\n");
  expect_error(Code::kInvalidArgument, "merges.txt: line 2 is \"a b c\"",
               [&] { (void)load_tokenizer(folder.path(), "qwen2"); });
  folder.write("merges.txt", "\xFF \xFE\n");
  expect_error(Code::kInvalidArgument, "in the vocabulary",
               [&] { (void)load_tokenizer(folder.path(), "qwen2"); });
  folder.write("vocab.json", "[]");
  expect_error(Code::kInvalidArgument, "vocab.json",
               [&] { (void)load_tokenizer(folder.path(), "qwen2"); });
  std::filesystem::remove(folder.path() + "/merges.txt");
  expect_error(Code::kNotFound, "found none of",
               [&] { (void)load_tokenizer(folder.path(), "qwen2"); });
}

// Letters, a few merges, and a token for each byte: Llama 2's form at its smallest.
Json character_json() {
  Json vocabulary = {{"<unk>", 0}, {"<s>", 1}};
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    (void)std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
    vocabulary[text] = 2 + byte;
  }
  int id = 258;
  for (const char* token : {"▁", "a", "b", "好", "▁a", "ab", "▁▁", "▁ab"}) vocabulary[token] = id++;
  const Json decoders = Json::parse(R"([
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}])");
  return {{"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Metaspace"},
            {"replacement", "▁"},
            {"prepend_scheme", "first"},
            {"split", false}}},
          {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
          {"added_tokens",
           Json::parse(R"([{"id": 1, "content": "<s>", "special": true, "normalized": false},
                           {"id": 266, "content": "<x>", "special": false, "normalized": false}])")},
          {"model",
           {{"type", "BPE"},
            {"byte_fallback", true},
            {"fuse_unk", true},
            {"unk_token", "<unk>"},
            {"vocab", vocabulary},
            {"merges", {"▁ a", "a b", "▁ ▁", "▁a b", "▁ ab"}}}}};
}

std::unique_ptr<Tokenizer> load(const Json& json) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", json.dump());
  return load_tokenizer(folder.path(), "llama");
}

constexpr int32_t kSpace = 258, kA = 259, kB = 260, kHao = 261, kSpaceA = 262, kAb = 263,
                  kSpaces = 264, kSpaceAb = 265, kX = 266;

TEST(TokenizerKinds, CharactersWithTheirSpaces) {
  const auto tokenizer = load(character_json());
  EXPECT_EQ(tokenizer->encode("ab"), Ids{kSpaceAb});
  EXPECT_EQ(tokenizer->encode(" ab"), Ids{kSpaceAb});  // it begins with one already
  EXPECT_EQ(tokenizer->encode("bab"), (Ids{kSpace, kB, kAb}));
  EXPECT_EQ(tokenizer->encode("   a"), (Ids{kSpaces, kSpaceA}));
  EXPECT_EQ(tokenizer->encode("好é"), (Ids{kSpace, kHao, 2 + 0xC3, 2 + 0xA9}));
  EXPECT_EQ(tokenizer->encode("\xE2\x96\x81"), Ids{kSpace});
  EXPECT_EQ(tokenizer->encode(""), Ids{});
  // Only the beginning of the text gets a space; the text of a special token stays ordinary.
  EXPECT_EQ(tokenizer->encode("a<x>a"), (Ids{kSpaceA, kX, kA}));
  for (int32_t id : tokenizer->encode("<s>")) EXPECT_NE(id, 1);
  EXPECT_EQ(tokenizer->decode(Ids{kSpaceAb, kSpaceAb}), "ab ab");
  EXPECT_EQ(tokenizer->decode(Ids{kSpaces, 2 + 0xC3, 2 + 0xA9}), " é");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("b 好\n<s>")), "b 好\n<s>");
}

TEST(TokenizerKinds, PrefixesOfEveryAge) {
  Json json = character_json();
  json["pre_tokenizer"]["prepend_scheme"] = "always";
  EXPECT_EQ(load(json)->encode("a<x>a"), (Ids{kSpaceA, kX, kSpaceA}));
  json["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_EQ(load(json)->encode("a a"), (Ids{kA, kSpaceA}));
  json["pre_tokenizer"] = Json::parse(R"({"type": "Metaspace", "replacement": "▁"})");
  EXPECT_EQ(load(json)->encode("  a"), (Ids{kSpace, kSpaceA}));  // cut before each
  json["pre_tokenizer"] = nullptr;
  json["normalizer"] = Json::parse(R"({"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})");
  EXPECT_EQ(load(json)->encode(" a<x>a"), (Ids{kSpace, kSpaceA, kX, kSpaceA}));
}

// "ab--b-" cut at "-", as the tokenizers library gives it; tokens that lie across show the pieces.
TEST(TokenizerKinds, EveryWayOfCutting) {
  constexpr int32_t kDash = 267, kBDash = 268, kDashB = 269, kDashes = 270;
  const struct {
    const char* behavior;
    bool invert;
    Ids ids;
  } cases[] = {
      {"Isolated", false, {kA, kB, kDash, kDash, kB, kDash}},
      {"Isolated", true, {kA, kB, kDash, kDash, kB, kDash}},
      {"Removed", false, {kA, kB, kB}},
      {"Removed", true, {kDash, kDash, kDash}},
      {"Contiguous", false, {kA, kB, kDashes, kB, kDash}},
      {"MergedWithPrevious", false, {kA, kBDash, kDash, kBDash}},
      {"MergedWithNext", false, {kA, kB, kDash, kDashB, kDash}},
  };
  Json json = character_json();
  json["model"]["merges"] = {"b -", "- b", "- -"};
  for (const char* token : {"-", "b-", "-b", "--"}) {
    json["model"]["vocab"][token] = json["model"]["vocab"].size() + 1;  // <x> is none of them
  }
  for (const auto& item : cases) {
    SCOPED_TRACE(item.behavior);
    json["pre_tokenizer"] = {{"type", "Split"},
                             {"pattern", {{"String", "-"}}},
                             {"behavior", item.behavior},
                             {"invert", item.invert}};
    EXPECT_EQ(load(json)->encode("ab--b-"), item.ids);
  }
}

TEST(TokenizerKinds, CharactersThatCannotBeWrittenAreRefused) {
  const struct {
    const char* part;
    void (*change)(Json&);
  } cases[] = {
      {"the byte token <0x41> is missing", [](Json& j) { j["model"]["vocab"].erase("<0x41>"); }},
      {"neither ByteLevel nor byte_fallback", [](Json& j) { j["model"]["byte_fallback"] = false; }},
      {"\"decoder\" is missing", [](Json& j) { j.erase("decoder"); }},
      {"the decoder WordPiece",
       [](Json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       }},
      {"stripping other than of one leading space",
       [](Json& j) { j["decoder"]["decoders"][3]["start"] = 2; }},
      {"a replacement other than of U+2581",
       [](Json& j) { j["decoder"]["decoders"][0]["content"] = "_"; }},
      {"the prepend_scheme last", [](Json& j) { j["pre_tokenizer"]["prepend_scheme"] = "last"; }},
      {"is one character, so that a text could not hold it",
       [](Json& j) {
         j["added_tokens"].push_back({{"id", kA}, {"content", "a"}, {"special", true}});
       }},
      {"the model Unigram is not supported", [](Json& j) { j["model"]["type"] = "Unigram"; }},
  };
  for (const auto& item : cases) {
    SCOPED_TRACE(item.part);
    Json json = character_json();
    item.change(json);
    expect_error(Code::kInvalidArgument, item.part, [&] { (void)load(json); });
  }
}

// tokenizer.json, tokenizer.model, qwen.tiktoken, vocab.json with merges.txt: the first that is
// there.
TEST(TokenizerKinds, TheOrderInWhichFilesAreTaken) {
  const TemporaryFolder folder;
  folder.write("tokenizer_config.json", kQwenClass);
  folder.write("qwen.tiktoken", tiny_list());
  write_vocab_merges(folder);
  EXPECT_EQ(load_tokenizer(folder.path(), "qwen")->size(), 688);
  folder.write("tokenizer.model", read_whole(test_data("tiny-chatglm3/tokenizer.model")));
  EXPECT_EQ(load_tokenizer(folder.path(), "chatglm")->size(), 521);
  folder.write("tokenizer.model", tiny_list());
  folder.write("tokenizer_config.json", kGlmClass);
  EXPECT_EQ(load_tokenizer(folder.path(), "chatglm")->size(), 494);
  folder.write("tokenizer.json", tiny_json().dump());
  EXPECT_EQ(load_tokenizer(folder.path(), "chatglm")->size(), 483);
}

// Each file with bytes changed, doubled or cut off is read or refused; a text still goes through
// one that is read.
TEST(TokenizerKinds, ChangedFilesAreReadOrRefused) {
  const TemporaryFolder lists, merges, characters;
  lists.write("tokenizer.model", tiny_list());
  lists.write("tokenizer_config.json", kGlmClass);
  write_vocab_merges(merges);
  merges.write("added_tokens.json", R"({"<|im_end|>": 482, "<think>": 483})");
  merges.write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2Tokenizer",
      "added_tokens_decoder": {"481": {"content": "<|im_start|>", "special": true}}})");
  characters.write("tokenizer.json", character_json().dump());
  std::mt19937 random(31);
  int read = 0, refused = 0;
  for (const TemporaryFolder* folder : {&lists, &merges, &characters}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder->path())) {
      const std::string good = read_whole(entry.path());
      for (int round = 0; round < 60; ++round) {
        std::string bytes = good;
        for (size_t left = 1 + random() % 3; left > 0; --left) {
          const size_t at = random() % bytes.size();
          const size_t length = random() % 40;
          if (random() % 3 == 0) bytes.resize(at + 1);
          if (random() % 3 == 0) bytes.insert(at, bytes.substr(at, length));
          bytes[at] =
              static_cast<char>(random() % 2 ? random() % 256 : "0159{}[]\",: =/-"[random() % 16]);
        }
        folder->write(entry.path().filename(), bytes);
        try {
          const auto tokenizer = load_tokenizer(folder->path(), "chatglm");
          (void)tokenizer->decode(tokenizer->encode("ab 12 <think>\u00e9\n"));
          ++read;
        } catch (const Error& error) {
          EXPECT_FALSE(std::string(error.what()).empty());
          ++refused;
        }
      }
      folder->write(entry.path().filename(), good);
    }
  }
  EXPECT_GT(read, 5);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace trireme
