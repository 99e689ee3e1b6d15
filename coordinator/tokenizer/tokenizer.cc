// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/tokenizer.h"

#include <filesystem>

#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/stream_decoder.h"
#include "coordinator/tokenizer/tiktoken.h"
#include "coordinator/tokenizer/vocab_merges.h"
#include "kernels/base/error.h"
#include "worker/model/mapped_file.h"

namespace trireme {
namespace {

// tokenizer.model is the name of two formats: a sentencepiece model, whose first field has the tag
// 0x0A, and tiktoken's list in base64.
bool looks_like_sentencepiece(const std::string& file) {
  const MappedFile bytes(file);
  return bytes.size() > 0 && bytes.data()[0] == std::byte{0x0A};
}

}  // namespace

// By way of the stream decoder, so that streamed and whole text cannot differ.
std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  StreamDecoder stream(*this);
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

// The kinds of tokenizer. tokenizer.json goes first, as in transformers: it alone says everything,
// fine-tuned models' own tokens too.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path, const std::string& family) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return load_gguf_tokenizer(path);
  const auto has = [&](const char* name) { return name_exists(path + "/" + name); };
  if (has("tokenizer.json")) return load_tokenizer_json(path + "/tokenizer.json");
  if (has("tokenizer.model")) {
    const std::string file = path + "/tokenizer.model";
    return looks_like_sentencepiece(file) ? load_sentencepiece(file, path, family)
                                          : load_tiktoken(file, path, family);
  }
  if (has("qwen.tiktoken")) return load_tiktoken(path + "/qwen.tiktoken", path, family);
  if (has("vocab.json") && has("merges.txt")) return load_vocab_merges(path, family);
  throw Error(Code::kNotFound,
              "cannot load a tokenizer from " + path +
                  ": found none of tokenizer.json, tokenizer.model, qwen.tiktoken, and vocab.json "
                  "with merges.txt; copy the one of the checkpoint there");
}

}  // namespace trireme
