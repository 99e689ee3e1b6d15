// SPDX-License-Identifier: Apache-2.0
// Tokenizers of a sentencepiece model: Llama 2, and ChatGLM with the nine tokens that its Python
// class appends to the pieces of the file.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

class GgufFile;

// file: tokenizer.model, untrusted. family "chatglm" appends ChatGLM's tokens.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& file, const std::string& family);

// The tokenizer of a GGUF file whose tokenizer.ggml.model is "llama": pieces with scores, merged as
// sentencepiece's BPE merges them.
std::unique_ptr<Tokenizer> load_gguf_sentencepiece(const GgufFile& gguf);

// bytes: what a tokenizer.model holds, from `file`.
std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& file, std::string_view bytes);

}  // namespace trireme
