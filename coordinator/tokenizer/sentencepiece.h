// SPDX-License-Identifier: Apache-2.0
// Tokenizers of a sentencepiece model: Llama 2, and ChatGLM with the nine tokens that its Python
// class appends to the pieces of the file.
#pragma once

#include <memory>
#include <string>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

// file: tokenizer.model, untrusted. family "chatglm" appends ChatGLM's tokens.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& file, const std::string& family);

}  // namespace trireme
