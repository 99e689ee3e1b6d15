// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/byte_bpe.h"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>
#include <unordered_map>

#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/nfc.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

// 13 bytes never occur in UTF-8, and SmolLM2 lacks 8 more. Beyond that the vocabulary is of another
// kind, and texts would lose characters.
constexpr int kMissingBytesMax = 32;
constexpr size_t kAddedMax =
    16384;  // each is compared with the text; known tokenizers have up to 2000
constexpr size_t kTextBytesMax = size_t{1} << 30;

struct Merge {
  uint32_t rank;
  int32_t merged;
};

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

class ByteBpe final : public Tokenizer {
 public:
  explicit ByteBpe(ByteBpeModel model);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string bytes_of(int32_t id, bool) const override {
    return id < 0 || id >= size() || special_[id] ? "" : bytes_[id];
  }
  bool is_special(int32_t id) const override { return id >= 0 && id < size() && special_[id]; }
  std::optional<int32_t> special(std::string_view text) const override {
    const auto found = special_ids_.find(std::string(text));
    return found == special_ids_.end() ? std::nullopt : std::optional(found->second);
  }
  int32_t size() const override { return static_cast<int32_t>(bytes_.size()); }

 private:
  using Ids = std::unordered_map<std::string_view, int32_t>;  // by the text in the file

  // A word while it is merged: a list of symbols, threaded through an array.
  struct Symbol {
    int32_t id;  // -1: merged into the one before it
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    uint64_t order;  // rank, then position: the lowest is merged first
    int32_t left;
    int32_t right;
    int32_t merged;
    bool operator>(const Candidate& other) const { return order > other.order; }
  };
  using Candidates = std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>>;

  [[noreturn]] void fail(const std::string& what) const;
  void read_added(ByteBpeModel& model);
  void read_bytes(const ByteBpeModel& model, const Ids& ids);
  void read_merges(const ByteBpeModel& model, const Ids& ids);
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  void offer(const std::vector<Symbol>& word, int32_t at, Candidates& candidates) const;

  std::string file_;
  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
  std::unordered_map<std::string, int32_t> special_ids_;
  std::array<int32_t, 256> byte_ids_;  // -1: the vocabulary lacks it
  std::unordered_map<uint64_t, Merge> merges_;
  std::unordered_map<std::string, int32_t> words_;  // all tokens by their bytes, for ignore_merges
  AddedTokens added_raw_;
  AddedTokens added_normalized_;
  PreTokenizer pre_tokenizer_;
  bool nfc_;
};

ByteBpe::ByteBpe(ByteBpeModel model)
    : file_(model.file), pre_tokenizer_(std::move(model.pre_tokenizer)), nfc_(model.nfc) {
  read_added(model);
  Ids ids;
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    if (model.tokens[id].empty()) continue;
    if (!ids.emplace(model.tokens[id], static_cast<int32_t>(id)).second) {
      fail("the token \"" + model.tokens[id] + "\" has two ids; each token needs one");
    }
  }
  read_bytes(model, ids);
  read_merges(model, ids);
  if (!model.ignore_merges) return;
  for (const auto& [text, id] : ids) {
    const auto bytes = alphabet_to_bytes(text);
    if (bytes.has_value() && !special_[id]) words_.emplace(*bytes, id);
  }
}

void ByteBpe::fail(const std::string& what) const {
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + file_ + ": " + what);
}

// Before the vocabulary: an added token may have its id beyond it.
void ByteBpe::read_added(ByteBpeModel& model) {
  if (model.added.size() > kAddedMax) {
    fail("it has " + std::to_string(model.added.size()) + " added tokens, at most " +
         std::to_string(kAddedMax) + " are taken");
  }
  // A gap of more than the number of tokens is no gap but a broken id.
  const size_t limit = 2 * (model.tokens.size() + model.added.size());
  special_.resize(model.tokens.size());
  for (const AddedToken& token : model.added) {
    if (token.text.empty()) fail("an added token has no text");
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
      added_normalized_.add(nfc_ ? to_nfc(token.text) : token.text, token.id);
    } else {
      added_raw_.add(token.text, token.id);
    }
  }
}

void ByteBpe::read_bytes(const ByteBpeModel& model, const Ids& ids) {
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
           "\" is a letter of the byte "
           "alphabet, so that a text could not hold it");
    }
  }
  if (missing > 0 && model.unknown_token) {
    fail(std::to_string(missing) +
         " of the 256 bytes have no token; an unknown token for them is "
         "not supported");
  }
  if (missing > kMissingBytesMax) {
    fail(std::to_string(missing) + " of the 256 bytes have no token, at most " +
         std::to_string(kMissingBytesMax) + " may lack; this is no byte-level vocabulary");
  }
}

void ByteBpe::read_merges(const ByteBpeModel& model, const Ids& ids) {
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
      merges_[pair_key(left_id->second, right_id->second)] = {rank, merged->second};
    }
    ++rank;
  }
}

std::vector<int32_t> ByteBpe::encode(std::string_view text) const {
  require_utf8(text);
  if (text.size() > kTextBytesMax) {
    throw Error(Code::kInvalidArgument, "cannot tokenize a text of " + std::to_string(text.size()) +
                                            " bytes: at most " + std::to_string(kTextBytesMax) +
                                            " are taken; send a shorter one");
  }
  std::vector<int32_t> ids;
  RegexScratch scratch;
  const auto take_id = [&](int32_t id) { ids.push_back(id); };
  const auto take_ordinary = [&](std::string_view part) {
    pre_tokenizer_.split(part, scratch, [&](std::string_view word) { encode_word(word, ids); });
  };
  const auto take_raw = [&](std::string_view part) {
    if (!nfc_) return added_normalized_.split(part, take_ordinary, take_id);
    added_normalized_.split(to_nfc(part), take_ordinary, take_id);
  };
  added_raw_.split(text, take_raw, take_id);
  return ids;
}

void ByteBpe::offer(const std::vector<Symbol>& word, int32_t at, Candidates& candidates) const {
  if (at < 0 || word[at].next < 0) return;
  const int32_t left = word[at].id;
  const int32_t right = word[word[at].next].id;
  const auto found = merges_.find(pair_key(left, right));
  if (found == merges_.end()) return;
  const uint64_t order = uint64_t{found->second.rank} << 32 | static_cast<uint32_t>(at);
  candidates.push({order, left, right, found->second.merged});
}

// Each merge removes a symbol and offers at most two new pairs, so O(n log n) for a word of n
// bytes.
void ByteBpe::encode_word(std::string_view bytes, std::vector<int32_t>& ids) const {
  if (!words_.empty()) {
    if (const auto found = words_.find(std::string(bytes)); found != words_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  std::vector<Symbol> word;
  word.reserve(bytes.size());
  for (const char byte : bytes) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    const auto at = static_cast<int32_t>(word.size());
    if (id >= 0) word.push_back({id, at - 1, at + 1});
  }
  if (word.empty()) return;
  word.back().next = -1;
  Candidates candidates;
  for (int32_t at = 0; word[at].next >= 0; ++at) offer(word, at, candidates);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    const auto at = static_cast<int32_t>(best.order & UINT32_MAX);
    Symbol& left = word[at];
    // The pair that was offered may have been merged with a neighbour meanwhile.
    if (left.id != best.left || left.next < 0 || word[left.next].id != best.right) continue;
    Symbol& right = word[left.next];
    left.id = best.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) word[left.next].previous = at;
    offer(word, left.previous, candidates);
    offer(word, at, candidates);
  }
  for (int32_t at = 0; at >= 0; at = word[at].next) ids.push_back(word[at].id);
}

}  // namespace

std::unique_ptr<Tokenizer> make_byte_bpe(ByteBpeModel model) {
  return std::make_unique<ByteBpe>(std::move(model));
}

}  // namespace trireme
