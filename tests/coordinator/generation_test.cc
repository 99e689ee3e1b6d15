// SPDX-License-Identifier: Apache-2.0
#include "coordinator/generation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace trireme {
namespace {

// Ids are indices into a list of byte strings; 0 is special.
class ListTokenizer : public Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}
  std::vector<int32_t> encode(std::string_view) const override { return {}; }
  std::string bytes_of(int32_t id, bool) const override {
    return id <= 0 || id >= size() ? "" : tokens_[id];
  }
  bool is_special(int32_t id) const override { return id == 0; }
  std::optional<int32_t> special(std::string_view) const override { return std::nullopt; }
  int32_t size() const override { return static_cast<int32_t>(tokens_.size()); }

 private:
  std::vector<std::string> tokens_;
};

struct Recorder : GenerationListener {
  void on_delta(const v1::Delta& delta) override {
    deltas.push_back(delta);
    text += delta.text();
    ids.insert(ids.end(), delta.token_ids().begin(), delta.token_ids().end());
  }
  void on_finished(const v1::Finished& value) override { finished.push_back(value); }
  void on_error(Code code, const std::string& message) override {
    error = code_name(code) + (": " + message);
  }
  std::vector<v1::Delta> deltas;
  std::vector<v1::Finished> finished;
  std::string text, error;
  std::vector<int32_t> ids;
};

// Drives a generation as the engine does.
void generate(const Tokenizer& tokenizer, const GenerationOptions& options,
              const std::vector<int32_t>& ids, Recorder& recorder) {
  Generation generation(tokenizer, options, recorder);
  for (const int32_t id : ids) {
    const bool more = generation.on_token({id, {}});
    const bool is_stop = std::count(options.stop_ids.begin(), options.stop_ids.end(), id) > 0;
    if (is_stop) return generation.on_finished(FinishReason::kStop, id);
    if (!more) return generation.on_finished(FinishReason::kStop, std::nullopt);
  }
  generation.on_finished(FinishReason::kLength, std::nullopt);
}

TEST(Generation, OneDeltaATokenThenTheEnd) {
  const ListTokenizer tokenizer({"<s>", "Par", "is", "."});
  Recorder recorder;
  GenerationOptions options;
  options.num_prompt = 11;
  generate(tokenizer, options, {1, 2, 3}, recorder);
  ASSERT_EQ(recorder.deltas.size(), 3u);
  EXPECT_EQ(recorder.deltas[1].text(), "is");
  EXPECT_EQ(recorder.deltas[1].token_ids(0), 2);
  ASSERT_EQ(recorder.finished.size(), 1u);
  const v1::Finished& finished = recorder.finished[0];
  EXPECT_EQ(finished.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(finished.has_matched_stop());
  EXPECT_EQ(finished.usage().prompt_tokens(), 11);
  EXPECT_EQ(finished.usage().completion_tokens(), 3);
}

TEST(Generation, TheStopIdIsCountedAndItsTextIsNot) {
  const ListTokenizer tokenizer({"<s>", "Paris", "END"});
  Recorder recorder;
  GenerationOptions options;
  options.stop_ids = {2};
  generate(tokenizer, options, {1, 2}, recorder);
  EXPECT_EQ(recorder.text, "Paris");
  EXPECT_EQ(recorder.ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(recorder.finished[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(recorder.finished[0].matched_stop(), "2");
  EXPECT_EQ(recorder.finished[0].usage().completion_tokens(), 2);
}

TEST(Generation, AStopStringAcrossTokensEndsTheText) {
  const ListTokenizer tokenizer({"<s>", "one\n", "\nQ", "uestion", ": no"});
  Recorder recorder;
  GenerationOptions options;
  options.stop = {"\n\nQuestion:"};
  generate(tokenizer, options, {1, 2, 3, 4, 1}, recorder);
  EXPECT_EQ(recorder.text, "one");
  EXPECT_EQ(recorder.deltas[0].text(), "one");  // its newline may be the beginning
  EXPECT_EQ(recorder.ids, (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(recorder.finished[0].matched_stop(), "\n\nQuestion:");
  EXPECT_EQ(recorder.finished[0].finish_reason(), v1::FINISH_REASON_STOP);
}

TEST(Generation, WhatOnlyLookedLikeAStopStringComesAfterAll) {
  const ListTokenizer tokenizer({"<s>", "a", "ab", "x"});
  Recorder recorder;
  GenerationOptions options;
  options.stop = {"aabb"};
  generate(tokenizer, options, {1, 2, 3, 1}, recorder);
  EXPECT_EQ(recorder.deltas[1].text(), "");
  EXPECT_EQ(recorder.deltas[2].text(), "aabx");
  EXPECT_EQ(recorder.deltas.back().text(), "a");  // held back to the end
  EXPECT_EQ(recorder.deltas.back().token_ids_size(), 0);
  EXPECT_EQ(recorder.text, "aabxa");
}

TEST(Generation, CharactersAreWholeAndHeldBytesAreNotLost) {
  // A four-byte character in pieces, then one that is never ended.
  const ListTokenizer tokenizer({"<s>", "\xF0\x9F", "\x9A", "\x80!", "\xE6\xB0"});
  Recorder recorder;
  generate(tokenizer, {}, {1, 2, 3, 4}, recorder);
  EXPECT_EQ(recorder.deltas[0].text(), "");
  EXPECT_EQ(recorder.deltas[2].text(), "\xF0\x9F\x9A\x80!");
  EXPECT_EQ(recorder.text, "\xF0\x9F\x9A\x80!\xEF\xBF\xBD");

  Recorder stopped;
  GenerationOptions options;
  options.stop_ids = {3};
  generate(tokenizer, options, {4, 3}, stopped);
  EXPECT_EQ(stopped.text, "\xEF\xBF\xBD");
}

TEST(Generation, AStopStringOfManyBytesIsCutAtACharacter) {
  const ListTokenizer tokenizer({"<s>", "好\xE3", "\x80\x82", "的"});
  Recorder recorder;
  GenerationOptions options;
  options.stop = {"。"};
  generate(tokenizer, options, {1, 2, 3}, recorder);
  EXPECT_EQ(recorder.text, "好");
  EXPECT_EQ(recorder.ids.size(), 2u);
}

TEST(Generation, AnEndThatCompletesAStopStringIsAStop) {
  const ListTokenizer tokenizer({"<s>", "a\xE3"});
  Recorder recorder;
  GenerationOptions options;
  options.stop = {"\xEF\xBF\xBD"};
  generate(tokenizer, options, {1}, recorder);
  EXPECT_EQ(recorder.text, "a");
  EXPECT_EQ(recorder.finished[0].finish_reason(), v1::FINISH_REASON_STOP);
}

TEST(Generation, PassesLogprobsAndErrors) {
  const ListTokenizer tokenizer({"<s>", "a"});
  Recorder recorder;
  GenerationOptions options;
  options.logprobs = true;
  Generation generation(tokenizer, options, recorder);
  EXPECT_TRUE(generation.on_token({1, {{1, -0.5f}, {0, -1.5f}}}));
  ASSERT_EQ(recorder.deltas[0].logprobs_size(), 1);
  ASSERT_EQ(recorder.deltas[0].logprobs(0).top_size(), 2);
  EXPECT_EQ(recorder.deltas[0].logprobs(0).top(1).id(), 0);
  EXPECT_EQ(recorder.deltas[0].logprobs(0).top(1).logprob(), -1.5f);
  generation.on_error(Code::kUnavailable, "lost");
  EXPECT_EQ(recorder.error, "UNAVAILABLE: lost");
}

TEST(Generation, EveryEventSaysWhichAnswerItIsOf) {
  const ListTokenizer tokenizer({"<s>", "a", "\xE3"});
  Recorder recorder;
  GenerationOptions options;
  options.index = 3;
  generate(tokenizer, options, {1, 2}, recorder);
  ASSERT_EQ(recorder.deltas.size(), 3u);  // the last is of the bytes held back
  for (const v1::Delta& delta : recorder.deltas) EXPECT_EQ(delta.index(), 3);
  EXPECT_EQ(recorder.finished[0].index(), 3);
}

TEST(Generation, StopStringsDoNotCountBeforeMinTokens) {
  const ListTokenizer tokenizer({"<s>", "ab", "c"});
  struct Row {
    int32_t min_tokens;
    std::string text;
    size_t num_tokens;
  };
  // "ab" ends with tokens 1, 3, 5 and so on.
  for (const Row& row : std::vector<Row>{
           {0, "", 1}, {1, "abc", 3}, {2, "abc", 3}, {3, "abcabc", 5}, {6, "abcabcabc", 7}}) {
    Recorder recorder;
    GenerationOptions options;
    options.stop = {"ab"};
    options.min_tokens = row.min_tokens;
    generate(tokenizer, options, {1, 2, 1, 2, 1, 2, 1, 2}, recorder);
    EXPECT_EQ(recorder.text, row.text) << row.min_tokens;
    EXPECT_EQ(recorder.ids.size(), row.num_tokens) << row.min_tokens;
    EXPECT_EQ(recorder.finished[0].matched_stop(), "ab");
  }
}

// It may begin before.
TEST(Generation, AStopStringThatEndsBehindMinTokensCounts) {
  const ListTokenizer tokenizer({"<s>", "ab", "c"});
  Recorder recorder;
  GenerationOptions options;
  options.stop = {"abc"};
  options.min_tokens = 1;
  generate(tokenizer, options, {1, 2, 1, 2}, recorder);
  EXPECT_EQ(recorder.text, "");
  EXPECT_EQ(recorder.ids.size(), 2u);
}

TEST(Generation, RefusesAnEmptyStopString) {
  const std::vector<std::string> stops = {"a", ""};
  EXPECT_THROW(StopStrings{stops}, Error);
}

// Against the plain specification: the stop string that ends first, the longest of those.
TEST(StopStrings, AgreeWithAPlainSearchHoweverTheTextIsCut) {
  std::mt19937 random(7);
  const auto below = [&](uint32_t n) { return static_cast<size_t>(random() % n); };
  const auto word = [&](size_t size) {
    std::string text(size, 'a');
    for (char& c : text) c = "ab"[below(2)];
    return text;
  };
  int num_matches = 0;
  for (int round = 0; round < 5000; ++round) {
    const std::string text = word(below(40));
    std::vector<std::string> stops(below(4));
    for (std::string& stop : stops) stop = word(1 + below(7));

    // What ends in the first bytes does not count.
    const size_t silent = round % 2 == 0 ? 0 : below(20);
    size_t end = std::string::npos;
    std::string expected_stop;
    for (const std::string& stop : stops) {
      size_t found = text.find(stop);
      while (found != std::string::npos && found + stop.size() <= silent) {
        found = text.find(stop, found + 1);
      }
      if (found == std::string::npos) continue;
      const size_t stop_end = found + stop.size();
      if (stop_end > end) continue;
      if (stop_end < end || stop.size() > expected_stop.size()) expected_stop = stop;
      end = stop_end;
    }
    const std::string expected =
        end == std::string::npos ? text : text.substr(0, end - expected_stop.size());

    StopStrings matcher(stops);
    std::string got;
    size_t longest = 0;
    for (const std::string& stop : stops) longest = std::max(longest, stop.size());
    for (size_t begin = 0; begin < text.size() && matcher.matched() == nullptr;) {
      const bool counts = begin >= silent;
      const size_t size = counts ? below(5) : std::min(below(5), silent - begin);
      got += matcher.push(std::string_view(text).substr(begin, size), counts);
      begin = std::min(text.size(), begin + size);
      if (matcher.matched() == nullptr) {
        EXPECT_TRUE(begin - got.size() <= longest);
      }
    }
    got += matcher.finish();
    ASSERT_EQ(got, expected) << text;
    ASSERT_EQ(matcher.matched() != nullptr, end != std::string::npos);
    if (matcher.matched() != nullptr) {
      ASSERT_EQ(*matcher.matched(), expected_stop);
      ++num_matches;
    }
  }
  EXPECT_GT(num_matches, 1000);
}

}  // namespace
}  // namespace trireme
