// SPDX-License-Identifier: Apache-2.0
// An answer as it is drawn, taken apart into the plain text and the tool calls. A call that cannot
// be read is given as text: nothing that a model said is lost.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/chat_tools.h"

namespace trireme {

// One answer; the pieces may be cut anywhere.
class AnswerReader {
 public:
  virtual ~AnswerReader() = default;

  // Text that was drawn; returns what is certain to be plain text. Only what may belong to a call
  // is held back.
  virtual std::string push(std::string_view text) = 0;
  // A special token that was drawn.
  virtual std::string special(int32_t id) = 0;
  // The answer has ended: what was held back and is no call. Call once.
  virtual std::string finish() = 0;

  // Complete after finish().
  const std::vector<ToolCall>& calls() const { return calls_; }

 protected:
  std::vector<ToolCall> calls_;
};

// GLM: parts that begin with <|assistant|> (the first one's is the prompt's). In each the text
// before the first newline is metadata: empty before a plain text, which is stripped, a tool's name
// before a call.
struct GlmAnswerStyle {
  std::optional<int32_t> assistant_id;
  std::string call_begin;  // of a call's body, behind the newline; empty: no calls are looked for
  std::function<std::optional<jinja::Value>(std::string_view)> read_arguments;
  std::vector<std::string> tool_names;
};
std::unique_ptr<AnswerReader> make_glm_answer(GlmAnswerStyle style);

// Calls between a mark and another, or the answer's end.
struct MarkedAnswerStyle {
  std::string begin = {};                // "<tool_call>"
  std::string end = {};                  // empty: the answer's end
  std::optional<int32_t> begin_id = {};  // where `begin` is a special token
  bool brace_begins = false;             // an answer that is one JSON object is a call too
  // Empty: no call.
  std::function<std::vector<ToolCall>(std::string_view)> read = {};
};
std::unique_ptr<AnswerReader> make_marked_answer(MarkedAnswerStyle style);

}  // namespace trireme
