// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/added_tokens.h"

#include <algorithm>

namespace trireme {

void AddedTokens::add(std::string text, int32_t id) {
  auto& tokens = by_first_byte_[static_cast<uint8_t>(text[0])];
  const auto at = std::find_if(tokens.begin(), tokens.end(), [&](const Token& token) {
    return token.first.size() < text.size();
  });
  tokens.emplace(at, std::move(text), id);
}

const AddedTokens::Token* AddedTokens::find(std::string_view text) const {
  for (const Token& token : by_first_byte_[static_cast<uint8_t>(text[0])]) {
    if (text.starts_with(token.first)) return &token;
  }
  return nullptr;
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
