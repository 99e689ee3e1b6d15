// SPDX-License-Identifier: Apache-2.0
// Tokens that are found in a text as they stand, before anything else is done to it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trireme {

class AddedTokens {
 public:
  // text is not empty. Of a text that is added twice the first id stays.
  void add(std::string text, int32_t id);

  // In the order of the text: each token found, the longest where several begin, and what is
  // between. However many tokens there are, a place costs at most the length of what it shares with
  // one of them.
  void split(std::string_view text, const std::function<void(std::string_view)>& ordinary,
             const std::function<void(int32_t)>& token) const;

 private:
  using Token = std::pair<std::string, int32_t>;
  const Token* find(std::string_view text) const;  // the longest that `text` begins with

  std::array<std::vector<Token>, 256> by_first_byte_;  // each in the order of the texts
};

}  // namespace trireme
