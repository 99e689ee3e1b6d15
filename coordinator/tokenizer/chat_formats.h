// SPDX-License-Identifier: Apache-2.0
// The chat formats. To add one: a class in a chat_*.cc, its function below, its row in chat.cc.
#pragma once

#include <memory>
#include <vector>

#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/chat_settings.h"

namespace trireme {

// Variants of a format that the same special tokens fit, the one to take without a template first.
// The tokenizer has the special tokens of the format's row in chat.cc, and outlives the result.
using FormatVariants = std::vector<std::unique_ptr<ChatFormat>>;

FormatVariants make_chatglm(const ChatSettings& settings, const Tokenizer& tokenizer);
FormatVariants make_glm(const ChatSettings& settings, const Tokenizer& tokenizer);
FormatVariants make_chatml(const ChatSettings& settings, const Tokenizer& tokenizer);
FormatVariants make_gemma(const ChatSettings& settings, const Tokenizer& tokenizer);
// None without a template.
FormatVariants make_inst(const ChatSettings& settings, const Tokenizer& tokenizer);
FormatVariants make_llama3(const ChatSettings& settings, const Tokenizer& tokenizer);

}  // namespace trireme
