// SPDX-License-Identifier: Apache-2.0
// What a checkpoint says about prompts beside its vocabulary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

struct ChatSettings {
  std::string family;         // ModelSpec.family
  bool is_chatglm2 = false;   // where the vocabulary fits ChatGLM3 too
  std::string chat_template;  // Jinja; empty: none
  std::string tool_template;  // for conversations with tools; empty: the same one
  std::string bos_token;      // as templates write them
  std::string eos_token;
  std::vector<int32_t> prefix;  // of a plain prompt: bos where the tokenizer adds it
};

// path: HF directory or GGUF file. bos_id: -1 for none. Throws kInvalidArgument naming the file.
ChatSettings read_chat_settings(const std::string& path, const std::string& family, int32_t bos_id,
                                const Tokenizer& tokenizer);

// The system message that a ChatML template puts in front where the conversation has none: Qwen and
// SmolLM write it out as one literal, <|im_start|>system ... <|im_end|>.
std::optional<std::string> default_system_message(const std::string& chat_template);

}  // namespace trireme
