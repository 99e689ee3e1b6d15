// SPDX-License-Identifier: Apache-2.0
// What chat formats are written with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

// Special tokens by id, and runs of ordinary text between them, each encoded as one text. What is
// in a text never becomes a special token.
class Prompt {
 public:
  explicit Prompt(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // A special token that the format's row in chat.cc asks for.
  Prompt& token(std::string_view text);
  Prompt& ids(const std::vector<int32_t>& ids);
  // Joins the run before it.
  Prompt& text(std::string_view run);
  // Ends the run: the next text is encoded apart.
  Prompt& cut();
  std::vector<int32_t> take();

 private:
  const Tokenizer& tokenizer_;
  std::string run_;
  std::vector<int32_t> ids_;
};

// Python's str.strip, and its halves.
std::string_view strip(std::string_view text);
std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);

// Appends a code point as UTF-8; one that is no character becomes U+FFFD.
void append_character(uint32_t point, std::string& out);

}  // namespace trireme
