// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding as HuggingFace's tokenizers library does it, over bytes (Llama 3, Qwen, GLM-4,
// SmolLM2) or over characters (Llama 2, Mistral, Gemma as that library writes them). A byte for
// which a byte-level vocabulary has no token is left out, as there (SmolLM2 lacks some controls).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/tokenizer/normalizer.h"
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

// What the merges of a word begin with.
enum class Letters : uint8_t {
  kBytes,       // each as a printable character of GPT-2's alphabet ("Ġ" is a space)
  kCharacters,  // with U+2581 for a space; of one without a token its bytes, as <0x0A>
};

// What a file says.
struct BpeModel {
  explicit BpeModel(const std::string& from) : file(from), normalizer(from), pre_tokenizer(from) {}

  std::string file;  // for messages
  Letters letters = Letters::kBytes;
  std::vector<std::string> tokens;                          // by id; empty: no token
  std::vector<std::pair<std::string, std::string>> merges;  // first come, first merged
  bool merges_by_id = false;  // in place of merges: any two that are a token together, lowest first
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  bool unknown_token = false;      // one stands for bytes without a token
  bool ignore_merges = false;      // a word that is a token as a whole is not merged
  bool drops_first_space = false;  // of a text that is decoded
};

// Throws kInvalidArgument naming the file, where the parts do not fit together.
std::unique_ptr<Tokenizer> make_bpe(BpeModel model);

// file: tokenizer.json, untrusted. Parts of it that we do not have are refused by name.
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::string& file);

// The tokenizer inside a GGUF file.
std::unique_ptr<Tokenizer> load_gguf_tokenizer(const std::string& file);

}  // namespace trireme
