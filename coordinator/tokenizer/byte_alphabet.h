// SPDX-License-Identifier: Apache-2.0
// GPT-2's alphabet: every byte as a printable character.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

// The character of a byte, in UTF-8.
const std::string& byte_character(uint8_t byte);

// The bytes that a text of such characters stands for; nullopt where another character is in it.
std::optional<std::string> alphabet_to_bytes(std::string_view text);

}  // namespace trireme
