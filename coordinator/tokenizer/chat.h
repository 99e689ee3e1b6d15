// SPDX-License-Identifier: Apache-2.0
// A conversation, or a plain prompt, as the ids that the model was trained on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/chat_answer.h"
#include "coordinator/tokenizer/chat_tools.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

struct ChatTurn {
  std::string role;  // system, user, assistant, tool (also called observation)
  std::string content;
  std::vector<ToolCall> calls = {};  // of an assistant
  std::string call_id = {};          // of a tool turn: the call that it answers
  std::string metadata = {};  // of an assistant: the line that GLM models write before the content
};

struct Conversation {
  Conversation(std::vector<ChatTurn> the_turns, std::vector<Tool> the_tools = {})
      : turns(std::move(the_turns)), tools(std::move(the_tools)) {}
  std::vector<ChatTurn> turns;
  std::vector<Tool> tools;
};

class Prompt;

class ChatFormat {
 public:
  virtual ~ChatFormat() = default;
  virtual const char* name() const = 0;  // "chatglm3", "chatml", "llama3", "glm", "none", ...

  // The prompt that asks for the next assistant turn. Contents are ordinary text. Throws
  // kInvalidArgument for an unknown role, no message, or an order that the model does not know;
  // kUnimplemented for tools where the format has none, and where the model has no known chat
  // format (Generate still works). Messages begin with the field: messages[1].role, tools_json.
  std::vector<int32_t> render(const Conversation& conversation) const;

  virtual bool knows_tools() const { return false; }
  // Assistant turns have a metadata line.
  virtual bool knows_metadata() const { return false; }
  // Takes plain text and tool calls of an answer apart; null where the answer is all plain text.
  virtual std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool> tools) const;

  // A plain prompt: bos or [gMASK] sop, as the family has it, then the text.
  std::vector<int32_t> plain(std::string_view text) const;

  // Ids that end an answer, beside those of the config.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }

 protected:
  explicit ChatFormat(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The turns are checked: known roles, valid UTF-8, tools only where knows_tools().
  virtual void write(const Conversation& conversation, Prompt& prompt) const = 0;

  const Tokenizer& tokenizer_;
  std::vector<int32_t> prefix_;  // of a plain prompt
  std::vector<int32_t> stop_ids_;
};

// Chosen by the special tokens that the tokenizer has; listed in chat.cc.
// bos_id: ModelSpec.bos_id, -1 for none; path: for the checkpoint's settings.
std::unique_ptr<ChatFormat> make_chat_format(const std::string& path, const std::string& family,
                                             int32_t bos_id, const Tokenizer& tokenizer);

}  // namespace trireme
