// SPDX-License-Identifier: Apache-2.0
// Text to ids and back. Immutable after loading; any thread may call.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of ordinary text: the text of a special token inside it stays ordinary text. Invalid UTF-8
  // is refused with kInvalidArgument naming the byte offset. No bos, no prefix ids.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  // Bytes of one id as it stands in a text (a special id: none; an id that is no token: none).
  // at_start: first ordinary token of a run, where sentencepiece drops its dummy leading space.
  virtual std::string bytes_of(int32_t id, bool at_start) const = 0;

  virtual bool is_special(int32_t id) const = 0;
  // The id of a special token by its text, such as "<|im_end|>".
  virtual std::optional<int32_t> special(std::string_view text) const = 0;
  // Ids [0, size) are tokens; what the embedding has beyond is padding and is never sampled.
  virtual int32_t size() const = 0;

  // Text of a finished sequence of ids: bytes_of in order, a new run after each special, broken
  // UTF-8 replaced by U+FFFD.
  std::string decode(std::span<const int32_t> ids) const;
};

// path: as serve --model. The kinds of tokenizer are listed in tokenizer.cc. family:
// ModelSpec.family. Throws kNotFound or kInvalidArgument naming the file.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path, const std::string& family);

}  // namespace trireme
