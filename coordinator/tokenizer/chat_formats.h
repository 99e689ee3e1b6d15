// SPDX-License-Identifier: Apache-2.0
// The chat formats. To add one: a class here in chat_formats.cc, its function below, its row in
// chat.cc.
#pragma once

#include <memory>

#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/chat_settings.h"

namespace trireme {

// The tokenizer has the special tokens of the format's row in chat.cc, and outlives the result.
std::unique_ptr<ChatFormat> make_chatglm3(const ChatSettings& settings, const Tokenizer& tokenizer);
std::unique_ptr<ChatFormat> make_glm(const ChatSettings& settings, const Tokenizer& tokenizer);
std::unique_ptr<ChatFormat> make_chatml(const ChatSettings& settings, const Tokenizer& tokenizer);
std::unique_ptr<ChatFormat> make_llama3(const ChatSettings& settings, const Tokenizer& tokenizer);
std::unique_ptr<ChatFormat> make_no_chat(const ChatSettings& settings, const Tokenizer& tokenizer);

}  // namespace trireme
