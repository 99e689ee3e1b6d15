// SPDX-License-Identifier: Apache-2.0
// A conversation, or a plain prompt, as the ids that the model was trained on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

struct ChatTurn {
  std::string role;  // system, user, assistant
  std::string content;
};

class ChatFormat {
 public:
  virtual ~ChatFormat() = default;
  virtual const char* name() const = 0;  // "chatglm3", "chatml", "llama3", "glm", "none"

  // The prompt that asks for the next assistant turn. Contents are ordinary text. Throws
  // kInvalidArgument for an unknown role or no message, kUnimplemented where the model has no known
  // chat format (Generate still works).
  virtual std::vector<int32_t> render(std::span<const ChatTurn> turns) const = 0;

  // A plain prompt: bos or [gMASK] sop, as the family has it, then the text.
  std::vector<int32_t> plain(std::string_view text) const;

  // Ids that end an answer, beside those of the config.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }

 protected:
  explicit ChatFormat(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  const Tokenizer& tokenizer_;
  std::vector<int32_t> prefix_;  // of a plain prompt
  std::vector<int32_t> stop_ids_;
};

// Chosen by the family and the special tokens that the tokenizer has; listed in chat.cc.
// bos_id: ModelSpec.bos_id, -1 for none; path: for tokenizer_config.json's add_bos_token.
std::unique_ptr<ChatFormat> make_chat_format(const std::string& path, const std::string& family,
                                             int32_t bos_id, const Tokenizer& tokenizer);

}  // namespace trireme
