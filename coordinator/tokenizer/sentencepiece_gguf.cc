// SPDX-License-Identifier: Apache-2.0
// The sentencepiece model that a GGUF file holds as arrays: put together again as the protobuf
// message that sentencepiece reads (sentencepiece_model.proto), so that one library cuts the text
// wherever a model comes from.
#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "coordinator/tokenizer/sentencepiece.h"
#include "kernels/base/error.h"
#include "worker/model/gguf.h"

namespace trireme {
namespace {

// Kinds of tokenizer.ggml.token_type; sentencepiece gives its pieces the same numbers.
constexpr int64_t kNormal = 1;
constexpr int64_t kUserDefined = 4;
constexpr int64_t kUnused = 5;
constexpr int64_t kByte = 6;

constexpr uint64_t kModelTypeBpe = 2;

// Fields of a protobuf message in wire format, in the order of the calls.
class WireMessage {
 public:
  void integer(uint32_t field, uint64_t value) {
    varint(field << 3);
    varint(value);
  }
  void number(uint32_t field, float value) {
    varint(field << 3 | 5);
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) bytes_ += static_cast<char>(bits >> shift);
  }
  void bytes(uint32_t field, std::string_view value) {
    varint(field << 3 | 2);
    varint(value.size());
    bytes_ += value;
  }
  const std::string& text() const { return bytes_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

struct Pieces {
  std::vector<std::string> texts;
  std::vector<double> scores;
  std::vector<int64_t> types;
};

[[noreturn]] void fail(const GgufFile& gguf, const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot load the tokenizer of " + gguf.file().path() + ": " +
                                          what + "; convert the model again");
}

template <typename T>
T need(const GgufFile& gguf, std::optional<T> value, const char* key) {
  if (value.has_value()) return *std::move(value);
  fail(gguf, std::string("the key ") + key + " is missing");
}

Pieces read_pieces(const GgufFile& gguf) {
  Pieces pieces{
      need(gguf, gguf.strings("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
      need(gguf, gguf.numbers("tokenizer.ggml.scores"), "tokenizer.ggml.scores"),
      need(gguf, gguf.integers("tokenizer.ggml.token_type"), "tokenizer.ggml.token_type")};
  const size_t count = pieces.texts.size();
  if (pieces.scores.size() != count || pieces.types.size() != count) {
    fail(gguf, "it has " + std::to_string(count) + " tokens, " +
                   std::to_string(pieces.scores.size()) + " scores and " +
                   std::to_string(pieces.types.size()) + " token types");
  }
  for (size_t id = 0; id < count; ++id) {
    if (!std::isfinite(pieces.scores[id])) {
      fail(gguf, "the score of token " + std::to_string(id) + " is not a number");
    }
    if (pieces.types[id] < kNormal || pieces.types[id] > kByte) {
      fail(gguf, "the type of token " + std::to_string(id) + " is " +
                     std::to_string(pieces.types[id]) + ", 1 to 6 are known");
    }
  }
  // What converters append up to the embedding's rows is no token.
  while (!pieces.types.empty() && pieces.types.back() == kUnused) pieces.types.pop_back();
  pieces.texts.resize(pieces.types.size());
  return pieces;
}

std::string piece_text(const std::string& text, int64_t type) {
  if (type != kUserDefined) return text;
  // Converters write the blanks of these tokens plainly; sentencepiece has its own sign for them.
  std::string piece;
  for (char c : text) {
    if (c == ' ') {
      piece += "\u2581";
    } else {
      piece += c;
    }
  }
  return piece;
}

void refuse_unknown_normaliser(const GgufFile& gguf) {
  constexpr const char* kCharsmap = "tokenizer.ggml.precompiled_charsmap";
  const auto map = gguf.integers(kCharsmap);
  if (!map.has_value() || map->empty()) return;
  throw Error(Code::kUnimplemented, "cannot load the tokenizer of " + gguf.file().path() + ": " +
                                        kCharsmap +
                                        " is set, and only an identity normaliser is read from "
                                        "GGUF; use the checkpoint's HF directory");
}

std::string serialized_model(const GgufFile& gguf) {
  const Pieces pieces = read_pieces(gguf);
  WireMessage model;
  bool has_bytes = false;
  for (size_t id = 0; id < pieces.texts.size(); ++id) {
    has_bytes = has_bytes || pieces.types[id] == kByte;
    WireMessage piece;
    piece.bytes(1, piece_text(pieces.texts[id], pieces.types[id]));
    piece.number(2, static_cast<float>(pieces.scores[id]));
    piece.integer(3, static_cast<uint64_t>(pieces.types[id]));
    model.bytes(1, piece.text());
  }
  WireMessage trainer;
  trainer.integer(3, kModelTypeBpe);
  trainer.integer(35, has_bytes ? 1 : 0);  // byte_fallback
  model.bytes(2, trainer.text());
  WireMessage normalizer;
  const bool adds_space = gguf.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  const bool removes = gguf.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
  normalizer.bytes(1, "identity");
  normalizer.integer(3, adds_space ? 1 : 0);
  normalizer.integer(4, removes ? 1 : 0);
  model.bytes(3, normalizer.text());
  return model.text();
}

}  // namespace

std::unique_ptr<Tokenizer> load_gguf_sentencepiece(const GgufFile& gguf) {
  refuse_unknown_normaliser(gguf);
  return make_sentencepiece(gguf.file().path(), serialized_model(gguf));
}

}  // namespace trireme
