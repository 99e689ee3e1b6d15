// SPDX-License-Identifier: Apache-2.0
// The vocabulary files of OpenAI's tiktoken: a line for each token, base64 and rank. Pattern and
// special tokens are not in the file; they follow from the tokenizer's class or the family.
#pragma once

#include <memory>
#include <string>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

// file: tokenizer.model of GLM-4 and of Llama 3, or qwen.tiktoken; untrusted. What stands beside it
// in the folder names its class and its special tokens.
std::unique_ptr<Tokenizer> load_tiktoken(const std::string& file, const std::string& folder,
                                         const std::string& family);

}  // namespace trireme
