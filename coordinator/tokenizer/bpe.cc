// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/bpe.h"

#include <array>
#include <cstdio>
#include <unordered_map>

#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/bpe_merges.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

// 13 bytes never occur in UTF-8, and SmolLM2 lacks 8 more. Beyond that the vocabulary is of another
// kind, and texts would lose characters.
constexpr int kMissingBytesMax = 32;
constexpr size_t kAddedMax = 16384;     // known tokenizers have up to 6300
constexpr size_t kAddedBytesMax = 256;  // each place of a text may be compared with so many bytes
constexpr size_t kTextBytesMax = size_t{1} << 30;

// A character of UTF-8 as one number.
uint32_t packed(std::string_view character) {
  uint32_t value = 0;
  for (const char byte : character) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

bool is_one_character(std::string_view text) {
  if (text.empty()) return false;
  const Utf8Step step = first_character(text);
  return step.kind == Utf8::kWhole && step.length == text.size();
}

std::string with_spaces(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const bool space = text.compare(at, kMetaspace.size(), kMetaspace) == 0;
    result += space ? ' ' : text[at];
    at += space ? kMetaspace.size() : 1;
  }
  return result;
}

std::string byte_token(int byte) {
  char text[8];
  (void)std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
  return text;
}

class Bpe final : public Tokenizer {
 public:
  explicit Bpe(BpeModel model);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string bytes_of(int32_t id, bool at_start) const override;
  bool is_special(int32_t id) const override { return id >= 0 && id < size() && special_[id]; }
  std::optional<int32_t> special(std::string_view text) const override {
    const auto found = special_ids_.find(std::string(text));
    return found == special_ids_.end() ? std::nullopt : std::optional(found->second);
  }
  int32_t size() const override { return static_cast<int32_t>(bytes_.size()); }

 private:
  using Ids = std::unordered_map<std::string_view, int32_t>;  // by the text in the file

  [[noreturn]] void fail(const std::string& what) const;
  void read_added(BpeModel& model);
  void read_alphabet(const BpeModel& model, const Ids& ids);
  void read_characters(const BpeModel& model, const Ids& ids);
  void read_merges(const BpeModel& model, const Ids& ids);
  void derive_merges(const BpeModel& model, const Ids& ids);
  void append_letters(std::string_view word, std::vector<int32_t>& letters) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;

  std::string file_;
  Letters letters_;
  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
  std::unordered_map<std::string, int32_t> special_ids_;
  std::array<int32_t, 256> byte_ids_;                 // -1: the vocabulary lacks it
  std::unordered_map<uint32_t, int32_t> characters_;  // by packed()
  BpeMerges merges_;
  std::unordered_map<std::string, int32_t> words_;  // all tokens as words, for ignore_merges
  AddedTokens added_raw_;
  AddedTokens added_normalized_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  bool drops_first_space_;
};

Bpe::Bpe(BpeModel model)
    : file_(model.file),
      letters_(model.letters),
      normalizer_(std::move(model.normalizer)),
      pre_tokenizer_(std::move(model.pre_tokenizer)),
      drops_first_space_(model.drops_first_space) {
  read_added(model);
  Ids ids;
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    if (model.tokens[id].empty()) continue;
    if (!ids.emplace(model.tokens[id], static_cast<int32_t>(id)).second) {
      fail("the token \"" + model.tokens[id] + "\" has two ids; each token needs one");
    }
  }
  const bool alphabet = letters_ == Letters::kBytes;
  alphabet ? read_alphabet(model, ids) : read_characters(model, ids);
  model.merges_by_id ? derive_merges(model, ids) : read_merges(model, ids);
  if (!model.ignore_merges) return;
  for (const auto& [text, id] : ids) {
    if (special_[id]) continue;
    const auto word = alphabet ? alphabet_to_bytes(text) : std::string(text);
    if (word.has_value()) words_.emplace(*word, id);
  }
}

void Bpe::fail(const std::string& what) const {
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file_ + ": " + what);
}

// Before the vocabulary: an added token may have its id beyond it.
void Bpe::read_added(BpeModel& model) {
  if (model.added.size() > kAddedMax) {
    fail("it has " + std::to_string(model.added.size()) + " added tokens, at most " +
         std::to_string(kAddedMax) + " are taken");
  }
  // A gap of more than the number of tokens is no gap but a broken id.
  const size_t limit = 2 * (model.tokens.size() + model.added.size());
  special_.resize(model.tokens.size());
  for (const AddedToken& token : model.added) {
    if (token.text.empty()) fail("an added token has no text");
    if (token.text.size() > kAddedBytesMax) {
      fail("an added token has " + std::to_string(token.text.size()) + " bytes, at most " +
           std::to_string(kAddedBytesMax) + " are taken");
    }
    if (token.id < 0 || static_cast<size_t>(token.id) >= limit) {
      fail("the added token \"" + token.text + "\" has the id " + std::to_string(token.id) +
           "; ids below " + std::to_string(limit) + " are expected");
    }
    const auto id = static_cast<size_t>(token.id);
    if (id >= model.tokens.size()) {
      model.tokens.resize(id + 1);
      special_.resize(id + 1);
    }
    std::string& text = model.tokens[id];
    if (!text.empty() && text != token.text) {
      fail("the id " + std::to_string(id) + " belongs to \"" + text + "\" and to \"" + token.text +
           "\"; each id needs one text");
    }
    text = token.text;
    if (token.special) {
      special_[id] = true;
      special_ids_.emplace(token.text, token.id);
    } else if (token.normalized) {
      const std::string normal = normalizer_.apply(token.text);
      if (normal.empty()) fail("the normalizer leaves nothing of an added token");
      added_normalized_.add(normal, token.id);
    } else {
      added_raw_.add(token.text, token.id);
    }
  }
}

void Bpe::read_alphabet(const BpeModel& model, const Ids& ids) {
  for (const std::string& text : model.tokens) {
    // A text outside the alphabet is an added token's, and stands as it is.
    bytes_.push_back(alphabet_to_bytes(text).value_or(text));
  }
  for (const AddedToken& token : model.added) bytes_[token.id] = token.text;
  int missing = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(byte_character(static_cast<uint8_t>(byte)));
    byte_ids_[byte] = found == ids.end() ? -1 : found->second;
    missing += found == ids.end();
    if (found != ids.end() && special_[found->second]) {
      fail("the special token \"" + std::string(found->first) +
           "\" is a letter of the byte alphabet, so that a text could not hold it");
    }
  }
  if (missing > 0 && model.unknown_token) {
    fail(std::to_string(missing) +
         " of the 256 bytes have no token; an unknown token for them is not supported");
  }
  if (missing > kMissingBytesMax) {
    fail(std::to_string(missing) + " of the 256 bytes have no token, at most " +
         std::to_string(kMissingBytesMax) + " may lack; this is no byte-level vocabulary");
  }
}

void Bpe::read_characters(const BpeModel& model, const Ids& ids) {
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    const std::string& text = model.tokens[id];
    bytes_.push_back(with_spaces(text));
    if (!is_one_character(text)) continue;
    if (special_[id]) {
      fail("the special token \"" + text + "\" is one character, so that a text could not hold it");
    }
    characters_.emplace(packed(text), static_cast<int32_t>(id));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(byte_token(byte));
    if (found == ids.end() || special_[found->second]) {
      fail("the byte token " + byte_token(byte) +
           " is missing; without one for each byte a text could not be written");
    }
    byte_ids_[byte] = found->second;
    bytes_[found->second] = static_cast<char>(byte);
  }
}

void Bpe::read_merges(const BpeModel& model, const Ids& ids) {
  merges_.reserve(model.merges.size());
  uint32_t rank = 0;
  for (const auto& [left, right] : model.merges) {
    const auto left_id = ids.find(left);
    const auto right_id = ids.find(right);
    const std::string text = left + right;
    const auto merged = ids.find(text);
    if (left_id == ids.end() || right_id == ids.end() || merged == ids.end()) {
      fail("merge " + std::to_string(rank) + " (\"" + left + "\", \"" + right +
           "\") needs both parts and \"" + text + "\" in the vocabulary");
    }
    // A text must not turn into a special token, whatever the file says.
    if (!special_[merged->second]) {
      merges_.add(left_id->second, right_id->second, rank, merged->second);
    }
    ++rank;
  }
}

// As tiktoken merges: not by a list of pairs, but by the rank of what a pair would become.
void Bpe::derive_merges(const BpeModel& model, const Ids& ids) {
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    const std::string_view text = model.tokens[id];
    if (special_[id]) continue;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = ids.find(text.substr(0, cut));
      if (left == ids.end() || special_[left->second]) continue;
      const auto right = ids.find(text.substr(cut));
      if (right == ids.end() || special_[right->second]) continue;
      merges_.add(left->second, right->second, static_cast<uint32_t>(id), static_cast<int32_t>(id));
    }
  }
}

std::string Bpe::bytes_of(int32_t id, bool at_start) const {
  if (id < 0 || id >= size() || special_[id]) return "";
  const std::string& bytes = bytes_[id];
  return at_start && drops_first_space_ && bytes.starts_with(' ') ? bytes.substr(1) : bytes;
}

std::vector<int32_t> Bpe::encode(std::string_view text) const {
  require_utf8(text);
  if (text.size() > kTextBytesMax) {
    throw Error(Code::kInvalidArgument, "cannot tokenize a text of " + std::to_string(text.size()) +
                                            " bytes: at most " + std::to_string(kTextBytesMax) +
                                            " are taken; send a shorter one");
  }
  std::vector<int32_t> ids;
  RegexScratch scratch;
  bool at_start = true;
  const auto take_id = [&](int32_t id) {
    ids.push_back(id);
    at_start = false;
  };
  const auto take_ordinary = [&](std::string_view part) {
    pre_tokenizer_.split(part, at_start, scratch,
                         [&](std::string_view word) { encode_word(word, ids); });
    at_start = false;
  };
  const auto take_raw = [&](std::string_view part) {
    if (normalizer_.empty()) return added_normalized_.split(part, take_ordinary, take_id);
    added_normalized_.split(normalizer_.apply(part), take_ordinary, take_id);
  };
  added_raw_.split(text, take_raw, take_id);
  return ids;
}

void Bpe::append_letters(std::string_view word, std::vector<int32_t>& letters) const {
  const auto append_bytes = [&](std::string_view bytes) {
    for (const char byte : bytes) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
      if (id >= 0) letters.push_back(id);
    }
  };
  if (letters_ == Letters::kBytes) return append_bytes(word);
  for (size_t length; !word.empty(); word.remove_prefix(length)) {
    length = first_character(word).length;
    const auto found = characters_.find(packed(word.substr(0, length)));
    if (found != characters_.end()) {
      letters.push_back(found->second);
    } else {
      append_bytes(word.substr(0, length));
    }
  }
}

void Bpe::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (!words_.empty()) {
    if (const auto found = words_.find(std::string(word)); found != words_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  std::vector<int32_t> letters;
  letters.reserve(word.size());
  append_letters(word, letters);
  merges_.apply(letters, ids);
}

}  // namespace

std::unique_ptr<Tokenizer> make_bpe(BpeModel model) {
  return std::make_unique<Bpe>(std::move(model));
}

}  // namespace trireme
