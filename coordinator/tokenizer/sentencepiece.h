// SPDX-License-Identifier: Apache-2.0
// Tokenizers of a sentencepiece model: ChatGLM with the nine tokens that its Python class appends
// to the pieces of the file, and Llama 2 with those that the files beside it add.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

class GgufFile;

// file: tokenizer.model, untrusted, in `folder`. family "chatglm" appends ChatGLM's tokens. What an
// added token leaves of a text is encoded apart, each part with its own dummy space.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& file, const std::string& folder,
                                              const std::string& family);

// The tokenizer of a GGUF file whose tokenizer.ggml.model is "llama": pieces with scores, merged as
// sentencepiece's BPE merges them.
std::unique_ptr<Tokenizer> load_gguf_sentencepiece(const GgufFile& gguf);

// bytes: what a tokenizer.model holds, from `file`.
std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& file, std::string_view bytes);

}  // namespace trireme
