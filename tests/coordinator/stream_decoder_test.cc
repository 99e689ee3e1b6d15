// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/stream_decoder.h"

#include <gtest/gtest.h>

#include "coordinator/tokenizer/utf8.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme {
namespace {

constexpr int32_t kSpecial = 256;
constexpr int32_t kWord = 257;

// Ids below 256 are bytes; then a special token and a word with a dummy leading space.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
  std::string bytes_of(int32_t id, bool at_start) const override {
    if (id == kWord) return at_start ? "word" : " word";
    return id >= 0 && id < kSpecial ? std::string(1, static_cast<char>(id)) : "";
  }
  bool is_special(int32_t id) const override { return id == kSpecial; }
  std::optional<int32_t> special(std::string_view) const override { return std::nullopt; }
  int32_t size() const override { return kWord + 1; }
};

struct Streamed {
  std::string text;
  std::vector<std::string> pieces;
};

Streamed stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  StreamDecoder decoder(tokenizer);
  Streamed result;
  for (int32_t id : ids) result.pieces.push_back(decoder.push(id));
  result.pieces.push_back(decoder.finish());
  for (const std::string& piece : result.pieces) {
    EXPECT_FALSE(find_broken_utf8(piece).has_value()) << "a piece breaks a character";
    result.text += piece;
  }
  return result;
}

TEST(StreamDecoder, HoldsACharacterBackUntilItIsWhole) {
  const ByteTokenizer tokenizer;
  const auto result = stream(tokenizer, tokenizer.encode("a你🚀"));
  EXPECT_EQ(result.pieces, (std::vector<std::string>{"a", "", "", "你", "", "", "", "🚀", ""}));
}

// Examples of the Unicode standard, chapter 3.9, and one for each kind of broken sequence.
TEST(StreamDecoder, ReplacesEachMaximalSubpartByOneCharacter) {
  const std::string r(kReplacementCharacter);
  const struct {
    std::string bytes, text;
  } cases[] = {
      {"\xF1\x80\x80\xE1\x80\xC2"
       "b\x80"
       "c\x80\xBF"
       "d",
       r + r + r + "b" + r + "c" + r + r + "d"},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
       "A",
       r + r + r + r + r + r + r + r + "A"},                // overlong forms
      {"\xED\xA0\x80\xED\xBF\xBF", r + r + r + r + r + r},  // surrogates
      {"\xF4\x91\x92\x93\xFF", r + r + r + r + r},          // past U+10FFFF
      {"\xE4\xBD", r},                                      // cut at the end
      {"\xF0\x9F\x9A", r},
      {"\xE4\xBD\xE4\xBD\xA0", r + "你"},
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
      {std::string("\0", 1), std::string("\0", 1)},
  };
  const ByteTokenizer tokenizer;
  for (const auto& item : cases) {
    const auto ids = tokenizer.encode(item.bytes);
    EXPECT_EQ(tokenizer.decode(ids), item.text);
    EXPECT_EQ(stream(tokenizer, ids).text, item.text);
  }
}

TEST(StreamDecoder, BeginsANewRunBehindASpecialToken) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(stream(tokenizer, {kWord, kWord, kSpecial, kWord}).text, "word wordword");
  // Half a character does not go on behind a special token.
  EXPECT_EQ(stream(tokenizer, {0xE4, 0xBD, kSpecial, 0xA0, 'x'}).text, "\uFFFD\uFFFDx");
}

TEST(StreamDecoder, StreamedTextIsTheWholeText) {
  const ByteTokenizer bytes;
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids(random() % 20);
    // Lead and continuation bytes, mostly, so that near misses are frequent.
    for (int32_t& id : ids) id = random() % 3 == 0 ? random() % 260 - 1 : 0x80 + random() % 0x80;
    ASSERT_EQ(stream(bytes, ids).text, bytes.decode(ids)) << "round " << round;
  }
  for (const char* name : {"tiny-chatglm3", "tiny-llama3"}) {
    const auto tokenizer =
        load_tokenizer(test_data(name), name == std::string("tiny-llama3") ? "llama" : "chatglm");
    for (int round = 0; round < 500; ++round) {
      std::vector<int32_t> ids(random() % 40);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % (tokenizer->size() + 8)) - 2;
      ASSERT_EQ(stream(*tokenizer, ids).text, tokenizer->decode(ids)) << name << " " << round;
    }
  }
}

}  // namespace
}  // namespace trireme
