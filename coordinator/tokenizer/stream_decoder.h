// SPDX-License-Identifier: Apache-2.0
// Decodes a growing answer: whole UTF-8 characters only, each byte once, O(1) a token. The pieces
// concatenate to exactly Tokenizer::decode of all ids.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // Text that this token completes; may be empty.
  std::string push(int32_t id);
  // What was held back, broken characters replaced by U+FFFD. Call once, at the end.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string held_;  // bytes of a character that is not whole yet
  bool at_start_ = true;
};

}  // namespace trireme
