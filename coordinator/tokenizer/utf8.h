// SPDX-License-Identifier: Apache-2.0
// UTF-8 as table 3-7 of the Unicode standard has it: no overlong form, no surrogate, nothing past
// U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

enum class Utf8 : uint8_t {
  kWhole,   // a character
  kBroken,  // bytes that no further byte can turn into a character
  kCut,     // a good beginning, and the text ends
};

struct Utf8Step {
  Utf8 kind;
  size_t length;  // of the character, or of the maximal subpart that stands for one U+FFFD
};

// The first character of `bytes`, which must not be empty.
Utf8Step first_character(std::string_view bytes);

// Offset of the first byte that is not part of a whole character.
std::optional<size_t> find_broken_utf8(std::string_view text);

// Throws kInvalidArgument naming the offset.
void require_utf8(std::string_view text);

// Takes from the front of `held` all that further bytes cannot change; each broken part becomes one
// U+FFFD. What stays is the beginning of one character, at most 3 bytes.
std::string take_characters(std::string& held);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace trireme
