// SPDX-License-Identifier: Apache-2.0
// A template as tokens: plain text with its blanks already taken away as the tags around it say
// (trim_blocks and lstrip_blocks, as transformers sets them), and what stands inside the tags.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/jinja/value.h"

namespace trireme::jinja {

struct Token {
  enum class Kind {
    kText,         // outside of tags
    kOutputBegin,  // {{
    kOutputEnd,    // }}
    kBlockBegin,   // {%
    kBlockEnd,     // %}
    kName,
    kNumber,  // value
    kString,  // text
    kOperator,
    kEnd,
  };
  Kind kind;
  std::string text;
  int line;
  Value value = {};

  bool is(Kind wanted, std::string_view wanted_text) const {
    return kind == wanted && text == wanted_text;
  }
};

// Throws kInvalidArgument naming the line. The last token is kEnd.
std::vector<Token> tokenize_template(std::string_view source);

}  // namespace trireme::jinja
