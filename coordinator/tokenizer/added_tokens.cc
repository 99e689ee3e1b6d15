// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/added_tokens.h"

#include <algorithm>

namespace trireme {

void AddedTokens::add(std::string text, int32_t id) {
  auto& tokens = by_first_byte_[static_cast<uint8_t>(text[0])];
  const auto at =
      std::lower_bound(tokens.begin(), tokens.end(), text,
                       [](const Token& a, const std::string& b) { return a.first < b; });
  if (at != tokens.end() && at->first == text) return;
  tokens.emplace(at, std::move(text), id);
}

// Narrows the tokens to those that share a beginning with the text, byte by byte; of these the
// first is the beginning itself where that is a token.
const AddedTokens::Token* AddedTokens::find(std::string_view text) const {
  const auto& tokens = by_first_byte_[static_cast<uint8_t>(text[0])];
  const Token* found = nullptr;
  auto begin = tokens.begin();
  auto end = tokens.end();
  for (size_t shared = 1; begin != end; ++shared) {
    if (begin->first.size() == shared) found = &*begin++;
    if (shared == text.size()) break;
    const auto next = static_cast<uint8_t>(text[shared]);
    const auto byte_of = [&](const Token& token) {
      return static_cast<uint8_t>(token.first[shared]);
    };
    begin = std::partition_point(begin, end, [&](const Token& t) { return byte_of(t) < next; });
    end = std::partition_point(begin, end, [&](const Token& t) { return byte_of(t) == next; });
  }
  return found;
}

void AddedTokens::split(std::string_view text,
                        const std::function<void(std::string_view)>& ordinary,
                        const std::function<void(int32_t)>& token) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const Token* found = find(text.substr(at));
    if (found == nullptr) {
      ++at;
      continue;
    }
    if (at > done) ordinary(text.substr(done, at - done));
    token(found->second);
    at += found->first.size();
    done = at;
  }
  if (done < text.size()) ordinary(text.substr(done));
}

}  // namespace trireme
