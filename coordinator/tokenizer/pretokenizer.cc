// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/pretokenizer.h"

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kStagesMax = 16;

}  // namespace

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void PreTokenizer::add(Stage stage) {
  if (stages_.size() == kStagesMax) {
    throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file_ +
                                            ": its pre-tokenizer has more than " +
                                            std::to_string(kStagesMax) + " stages");
  }
  stages_.push_back(std::move(stage));
}

void PreTokenizer::add_split(const std::string& pattern) { add(Regex(pattern, file_)); }
void PreTokenizer::add_space_prefix() { add(std::nullopt); }

void PreTokenizer::split(std::string_view text, RegexScratch& scratch,
                         const std::function<void(std::string_view)>& word) const {
  run(0, text, scratch, word);
}

void PreTokenizer::run(size_t stage, std::string_view text, RegexScratch& scratch,
                       const std::function<void(std::string_view)>& word) const {
  if (text.empty()) return;
  if (stage == stages_.size()) return word(text);
  const auto& regex = stages_[stage];
  if (!regex.has_value()) {
    std::string prefixed(text);
    if (text.front() != ' ') prefixed.insert(prefixed.begin(), ' ');
    return run(stage + 1, prefixed, scratch, word);
  }
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    const auto match = regex->find(text, from, scratch);
    if (!match.has_value()) break;
    run(stage + 1, text.substr(done, match->begin - done), scratch, word);
    run(stage + 1, text.substr(match->begin, match->end - match->begin), scratch, word);
    done = match->end;
    from = match->end;
    // An empty match is a cut; the search goes on behind the next character.
    if (match->begin == match->end && from < text.size()) {
      from += first_character(text.substr(from)).length;
    }
  }
  run(stage + 1, text.substr(done), scratch, word);
}

}  // namespace trireme
