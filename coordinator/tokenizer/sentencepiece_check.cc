// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/sentencepiece_check.h"

#include <google/protobuf/io/coded_stream.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/base/error.h"

namespace trireme {
namespace {

// Fields of sentencepiece's ModelProto and of the messages in it.
enum ModelField : uint32_t { kPieces = 1, kNormalizer = 3, kSelfTest = 4, kDenormalizer = 5 };
enum PieceField : uint32_t { kPieceText = 1, kScore = 2 };
enum NormalizerField : uint32_t { kCharsMap = 2 };

// Far above what trainers make (16 characters; runs of spaces of some dozens).
constexpr size_t kPieceBytesMax = 1024;
constexpr size_t kPiecesMax = size_t{1} << 22;
// A run of text that one character is replaced by: the longest of Unicode's NFKC has 33 bytes.
constexpr size_t kReplacementBytesMax = 64;
constexpr size_t kSelfTestBytesMax = size_t{1} << 20;

class Check {
 public:
  explicit Check(const std::string& file) : file_(file) {}

  void model(std::string_view bytes) {
    size_t pieces = 0;
    size_t self_test_bytes = 0;
    for_each_field(bytes, [&](uint32_t field, std::string_view value) {
      if (field == kPieces) piece(value);
      if (field == kPieces && ++pieces > kPiecesMax) fail("it has too many pieces");
      if (field == kNormalizer || field == kDenormalizer) normalizer(value);
      if (field == kSelfTest) self_test_bytes += value.size();
    });
    if (self_test_bytes > kSelfTestBytesMax) fail("its self-test is longer than 1 MiB");
  }

 private:
  using Visit = std::function<void(uint32_t field, std::string_view value)>;

  [[noreturn]] void fail(const std::string& found) const {
    throw Error(Code::kInvalidArgument, "cannot load " + file_ +
                                            ": not a sound sentencepiece model: " + found +
                                            "; copy the checkpoint's tokenizer.model again");
  }

  // The fields of a message that have a length or four bytes; others are passed over.
  void for_each_field(std::string_view bytes, const Visit& visit) const {
    google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                                              static_cast<int>(bytes.size()));
    while (const uint32_t tag = in.ReadTag()) {
      uint32_t size = 0;
      uint64_t number = 0;
      bool good = false;
      switch (tag & 7) {
        case 0: good = in.ReadVarint64(&number); break;
        case 1: good = in.Skip(8); break;
        case 2: good = in.ReadVarint32(&size) && size <= INT32_MAX; break;
        case 5: size = 4, good = true; break;
        default: break;  // groups, which no such file has
      }
      const auto at = static_cast<size_t>(in.CurrentPosition());
      if (!good || size > bytes.size() - at) fail("it is cut short, or of another format");
      if ((tag & 7) == 2 || (tag & 7) == 5) visit(tag >> 3, bytes.substr(at, size));
      in.Skip(static_cast<int>(size));
    }
    if (!in.ConsumedEntireMessage()) fail("it is cut short, or of another format");
  }

  void piece(std::string_view bytes) const {
    for_each_field(bytes, [&](uint32_t field, std::string_view value) {
      if (field == kPieceText &&
          (value.size() > kPieceBytesMax || value.find('\0') != value.npos)) {
        fail("a piece has " + std::to_string(value.size()) + " bytes, or a zero byte; at most " +
             std::to_string(kPieceBytesMax) + " without one are taken");
      }
      float score = 0;
      if (field != kScore || value.size() != sizeof score) return;
      std::memcpy(&score, value.data(), sizeof score);
      if (!std::isfinite(score)) fail("the score of a piece is no finite number");
    });
  }

  void normalizer(std::string_view bytes) const {
    for_each_field(bytes, [&](uint32_t field, std::string_view value) {
      if (field == kCharsMap && !value.empty()) chars_map(value);
    });
  }

  // Four bytes of length, a double-array trie of so many bytes, and the texts that its values point
  // to, each ended by a zero byte.
  void chars_map(std::string_view bytes) const {
    uint32_t trie_bytes = 0;
    const bool has_length = bytes.size() > sizeof trie_bytes;
    if (has_length) std::memcpy(&trie_bytes, bytes.data(), sizeof trie_bytes);
    if (!has_length || trie_bytes >= bytes.size() - sizeof trie_bytes || trie_bytes == 0 ||
        trie_bytes % sizeof(uint32_t) != 0) {
      fail("the table of its normaliser has a wrong length");
    }
    const std::string_view texts = bytes.substr(sizeof trie_bytes + trie_bytes);
    if (texts.back() != '\0') fail("the texts of its normaliser do not end");
    for (size_t at = 0; at < texts.size();) {
      const size_t end = texts.find('\0', at);
      if (end - at > kReplacementBytesMax) fail("a text of its normaliser is too long");
      at = end + 1;
    }
    std::vector<uint32_t> units(trie_bytes / sizeof(uint32_t));
    std::memcpy(units.data(), bytes.data() + sizeof trie_bytes, trie_bytes);
    check_trie(units, texts.size());
  }

  // A unit with bit 31 holds a value; any other leads to the units at (its index ^ its offset) ^
  // (any byte), the one of byte 0 being a value where bit 8 says so.
  void check_trie(const std::vector<uint32_t>& units, size_t values) const {
    constexpr uint32_t kIsValue = 1u << 31, kHasValue = 1u << 8, kIsWide = 1u << 9;
    for (size_t i = 0; i < units.size(); ++i) {
      const uint32_t unit = units[i];
      if (i > 0 && (unit & kIsValue) != 0) continue;
      const size_t child = i ^ (size_t{unit >> 10} << ((unit & kIsWide) != 0 ? 8 : 0));
      if ((child | 0xFF) >= units.size()) fail("the table of its normaliser leads out of itself");
      if ((unit & kHasValue) != 0 && (units[child] & ~kIsValue) >= values) {
        fail("the table of its normaliser points behind its texts");
      }
    }
  }

  const std::string& file_;
};

}  // namespace

void check_sentencepiece_model(std::string_view bytes, const std::string& file) {
  Check(file).model(bytes);
}

}  // namespace trireme
