// SPDX-License-Identifier: Apache-2.0
// Cuts a text into the words that merges do not cross.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/regex.h"

namespace trireme {

// The pattern of GPT-2, also that of a ByteLevel pre-tokenizer with use_regex.
extern const char* const kGpt2Pattern;
// Of Llama 3 and GLM-4, which keep up to three digits together, and of Qwen, which keeps none.
extern const char* const kThreeDigitsPattern;
extern const char* const kOneDigitPattern;

// U+2581, a space in sentencepiece's texts.
inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";

// What becomes of the matches of a pattern and of what lies between them.
enum class Cut : uint8_t {
  kIsolated,            // each is a piece
  kMatchesRemoved,      // what lies between is a piece, the matches are dropped
  kMatchesKept,         // the other way round
  kContiguous,          // neighbouring matches are one piece
  kMergedWithPrevious,  // a match belongs to what is before it
  kMergedWithNext,
};

// Which pieces a prefix is put in front of; those that begin with it are left as they are.
enum class Prefix : uint8_t { kNever, kAlways, kAtTextStart };

// Stages, each of which cuts further what the one before it left. Immutable once built.
class PreTokenizer {
 public:
  explicit PreTokenizer(std::string file) : file_(std::move(file)) {}  // for messages

  void add_split(const std::string& pattern, Cut cut = Cut::kIsolated);
  // A space before each piece that does not begin with one.
  void add_space_prefix();
  // As sentencepiece writes spaces: U+2581 for each, and one more in front.
  void add_metaspace(Prefix prefix);

  // Calls `word` with each piece, in order; the view lives during the call. at_start: the text is
  // the beginning of what was to be encoded.
  void split(std::string_view text, bool at_start, RegexScratch& scratch,
             const std::function<void(std::string_view)>& word) const;

 private:
  struct Stage {
    std::optional<Regex> regex;  // none: a prefix
    Cut cut = Cut::kIsolated;
    Prefix when = Prefix::kNever;
    std::string prefix;
    bool replaces_spaces = false;  // by the prefix
  };
  struct Piece {
    size_t begin;
    size_t end;
    bool match;
  };
  struct Run {
    RegexScratch& scratch;
    const std::function<void(std::string_view)>& word;
  };

  void add(Stage stage);
  void run(size_t stage, std::string_view text, bool at_start, const Run& to) const;
  static std::string prefixed(const Stage& stage, std::string_view text, bool at_start);
  static void for_each_piece(const Regex& regex, std::string_view text, RegexScratch& scratch,
                             const std::function<void(Piece)>& take);
  static std::vector<Piece> join(std::vector<Piece> pieces, Cut cut);

  std::string file_;
  std::vector<Stage> stages_;
};

// A pattern that matches just `text`.
std::string literal_pattern(const std::string& text);

}  // namespace trireme
