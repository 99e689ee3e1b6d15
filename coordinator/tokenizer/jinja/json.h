// SPDX-License-Identifier: Apache-2.0
// JSON as Python's json module reads and writes it: the order of members is kept, and the text of a
// tool in a prompt is the one that the model was trained on.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/tokenizer/jinja/value.h"

namespace trireme::jinja {

// Throws kInvalidArgument saying at which byte and why: no JSON, too deep (kDepthMax), or an object
// of more than 1,000 members.
Value parse_json(std::string_view text);

struct JsonStyle {
  int indent = -1;     // below 0: one line, ", " and ": " between
  bool ascii = false;  // other characters as \uXXXX
  bool sort_keys = false;
};
// Throws kInvalidArgument for what is no JSON: undefined, a function.
std::string to_json(const Value& value, const JsonStyle& style = {});

}  // namespace trireme::jinja
