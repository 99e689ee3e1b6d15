// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/byte_alphabet.h"

#include <array>
#include <unordered_map>

#include "coordinator/tokenizer/utf8.h"

namespace trireme {
namespace {

// Printable Latin-1 stands for itself; the others, in order, for U+0100 and on.
std::array<std::string, 256> make_characters() {
  std::array<std::string, 256> characters;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    const int point = printable ? byte : next++;
    if (point < 0x80) {
      characters[byte] = static_cast<char>(point);
    } else {
      characters[byte] = {static_cast<char>(0xC0 | (point >> 6)),
                          static_cast<char>(0x80 | (point & 0x3F))};
    }
  }
  return characters;
}

std::unordered_map<std::string_view, char> make_bytes() {
  std::unordered_map<std::string_view, char> bytes;
  for (int byte = 0; byte < 256; ++byte) {
    bytes.emplace(byte_character(static_cast<uint8_t>(byte)), static_cast<char>(byte));
  }
  return bytes;
}

}  // namespace

const std::string& byte_character(uint8_t byte) {
  static const std::array<std::string, 256> characters = make_characters();
  return characters[byte];
}

std::optional<std::string> alphabet_to_bytes(std::string_view text) {
  static const std::unordered_map<std::string_view, char> table = make_bytes();
  std::string bytes;
  while (!text.empty()) {
    const size_t length = first_character(text).length;
    const auto found = table.find(text.substr(0, length));
    if (found == table.end()) return std::nullopt;
    bytes += found->second;
    text.remove_prefix(length);
  }
  return bytes;
}

}  // namespace trireme
