// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/pretokenizer.h"

#include <algorithm>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kStagesMax = 16;

}  // namespace

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kThreeDigitsPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
const char* const kOneDigitPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string literal_pattern(const std::string& text) {
  std::string pattern;
  for (const char c : text) {
    const bool plain = (c & 0x80) != 0 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                       (c >= 'A' && c <= 'Z');
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

void PreTokenizer::add(Stage stage) {
  if (stages_.size() == kStagesMax) {
    throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file_ +
                                            ": its pre-tokenizer has more than " +
                                            std::to_string(kStagesMax) + " stages");
  }
  stages_.push_back(std::move(stage));
}

void PreTokenizer::add_split(const std::string& pattern, Cut cut) {
  add({Regex(pattern, file_), cut, Prefix::kNever, "", false});
}

void PreTokenizer::add_space_prefix() {
  add({std::nullopt, Cut::kIsolated, Prefix::kAlways, " ", false});
}

void PreTokenizer::add_metaspace(Prefix prefix) {
  add({std::nullopt, Cut::kIsolated, prefix, std::string(kMetaspace), true});
}

void PreTokenizer::split(std::string_view text, bool at_start, RegexScratch& scratch,
                         const std::function<void(std::string_view)>& word) const {
  run(0, text, at_start, {scratch, word});
}

void PreTokenizer::run(size_t stage, std::string_view text, bool at_start, const Run& to) const {
  if (text.empty()) return;
  if (stage == stages_.size()) return to.word(text);
  const Stage& here = stages_[stage];
  if (!here.regex.has_value()) {
    return run(stage + 1, prefixed(here, text, at_start), at_start, to);
  }
  const auto go_on = [&](Piece piece) {
    run(stage + 1, text.substr(piece.begin, piece.end - piece.begin), at_start && piece.begin == 0,
        to);
  };
  if (here.cut == Cut::kIsolated) return for_each_piece(*here.regex, text, to.scratch, go_on);
  std::vector<Piece> pieces;
  for_each_piece(*here.regex, text, to.scratch, [&](Piece piece) {
    if (piece.begin < piece.end) pieces.push_back(piece);
  });
  for (const Piece piece : join(std::move(pieces), here.cut)) go_on(piece);
}

std::string PreTokenizer::prefixed(const Stage& stage, std::string_view text, bool at_start) {
  std::string result;
  for (const char c : text) {
    if (stage.replaces_spaces && c == ' ') {
      result += stage.prefix;
    } else {
      result += c;
    }
  }
  const bool wanted =
      stage.when == Prefix::kAlways || (stage.when == Prefix::kAtTextStart && at_start);
  if (wanted && !result.starts_with(stage.prefix)) result.insert(0, stage.prefix);
  return result;
}

void PreTokenizer::for_each_piece(const Regex& regex, std::string_view text, RegexScratch& scratch,
                                  const std::function<void(Piece)>& take) {
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    const auto match = regex.find(text, from, scratch);
    if (!match.has_value()) break;
    take({done, match->begin, false});
    take({match->begin, match->end, true});
    done = match->end;
    from = match->end;
    // An empty match is a cut; the search goes on behind the next character.
    if (match->begin == match->end && from < text.size()) {
      from += first_character(text.substr(from)).length;
    }
  }
  take({done, text.size(), false});
}

// pieces: not empty, matches and what is between them, in order. A match joins only a piece that is
// none: of two matches in a row the second stays alone when joining backwards, the first forwards.
std::vector<PreTokenizer::Piece> PreTokenizer::join(std::vector<Piece> pieces, Cut cut) {
  if (cut == Cut::kMatchesRemoved || cut == Cut::kMatchesKept) {
    std::erase_if(pieces, [&](Piece p) { return p.match == (cut == Cut::kMatchesRemoved); });
    return pieces;
  }
  const bool forwards = cut == Cut::kMergedWithNext;
  if (forwards) std::reverse(pieces.begin(), pieces.end());
  std::vector<Piece> joined;
  bool after_match = false;
  for (const Piece piece : pieces) {
    const bool joins =
        cut == Cut::kContiguous ? piece.match == after_match : piece.match && !after_match;
    after_match = piece.match;
    if (joined.empty() || !joins) {
      joined.push_back(piece);
    } else {
      joined.back().begin = std::min(joined.back().begin, piece.begin);
      joined.back().end = std::max(joined.back().end, piece.end);
    }
  }
  if (forwards) std::reverse(joined.begin(), joined.end());
  return joined;
}

}  // namespace trireme
