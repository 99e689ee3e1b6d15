// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>

#include "coordinator/tokenizer/byte_bpe.h"
#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/stream_decoder.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

// tokenizer.model is the name of two formats: a sentencepiece model, whose first field has the tag
// 0x0A, and a tiktoken list in base64, beside which a tokenizer.json says the same.
bool looks_like_sentencepiece(const std::string& file) {
  return std::ifstream(file, std::ios::binary).get() == 0x0A;
}

}  // namespace

// By way of the stream decoder, so that streamed and whole text cannot differ.
std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  StreamDecoder stream(*this);
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

// The kinds of tokenizer.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path, const std::string& family) {
  if (!std::filesystem::is_directory(path)) return load_gguf_tokenizer(path);
  const std::string model = path + "/tokenizer.model";
  const std::string json = path + "/tokenizer.json";
  const bool has_model = std::filesystem::exists(model);
  const bool has_json = std::filesystem::exists(json);
  if (has_model && (!has_json || looks_like_sentencepiece(model))) {
    return load_sentencepiece(model, family);
  }
  if (has_json) return load_tokenizer_json(json);
  throw Error(Code::kNotFound, "cannot load a tokenizer from " + path +
                                   ": found neither tokenizer.model nor tokenizer.json; copy the "
                                   "one of the checkpoint there");
}

}  // namespace trireme
