// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE: Llama 3, Qwen2, GLM-4, SmolLM2. Encodes as HuggingFace's tokenizers library does;
// a byte for which the vocabulary has no token is left out, as there (SmolLM2 lacks some control
// bytes).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/tokenizer/pretokenizer.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace trireme {

// A token that stands beside the merges.
struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = false;     // never found in a text
  bool normalized = false;  // found in the normalised text, else in the text as it came
};

// What a file says. Texts of tokens are in the byte alphabet of GPT-2, where each byte has a
// printable character ("Ġ" is a space).
struct ByteBpeModel {
  explicit ByteBpeModel(const std::string& from) : file(from), pre_tokenizer(from) {}

  std::string file;                                         // for messages
  std::vector<std::string> tokens;                          // by id; empty: no token
  std::vector<std::pair<std::string, std::string>> merges;  // first come, first merged
  std::vector<AddedToken> added;
  PreTokenizer pre_tokenizer;
  bool nfc = false;
  bool unknown_token = false;  // one stands for bytes without a token
  bool ignore_merges = false;  // a word that is a token as a whole is not merged
};

// Throws kInvalidArgument naming the file, where the parts do not fit together.
std::unique_ptr<Tokenizer> make_byte_bpe(ByteBpeModel model);

// file: tokenizer.json, untrusted. Parts of it that we do not have are refused by name.
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::string& file);

// The tokenizer inside a GGUF file.
std::unique_ptr<Tokenizer> load_gguf_tokenizer(const std::string& file);

}  // namespace trireme
