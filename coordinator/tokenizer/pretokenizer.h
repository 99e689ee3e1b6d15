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

// Stages, each of which cuts further what the one before it left. Immutable once built.
class PreTokenizer {
 public:
  explicit PreTokenizer(std::string file) : file_(std::move(file)) {}  // for messages

  // Each match is a piece, and what lies between two matches is one.
  void add_split(const std::string& pattern);
  // A space before each piece that does not begin with one.
  void add_space_prefix();

  // Calls `word` with each piece, in order; the view lives during the call.
  void split(std::string_view text, RegexScratch& scratch,
             const std::function<void(std::string_view)>& word) const;

 private:
  // Without a regex: the space prefix.
  using Stage = std::optional<Regex>;
  void run(size_t stage, std::string_view text, RegexScratch& scratch,
           const std::function<void(std::string_view)>& word) const;
  void add(Stage stage);

  std::string file_;
  std::vector<Stage> stages_;
};

}  // namespace trireme
