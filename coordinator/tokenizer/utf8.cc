// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/utf8.h"

#include "kernels/base/error.h"

namespace trireme {
namespace {

// What may follow a lead byte. Only the second byte's range depends on the lead.
struct Lead {
  int trail;  // continuation bytes; -1: not a lead
  uint8_t second_min;
  uint8_t second_max;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {0, 0, 0};
  if (byte < 0xC2) return {-1, 0, 0};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte < 0xF4) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {-1, 0, 0};
}

}  // namespace

Utf8Step first_character(std::string_view bytes) {
  const Lead lead = lead_of(static_cast<uint8_t>(bytes[0]));
  if (lead.trail < 0) return {Utf8::kBroken, 1};
  const size_t whole = 1 + static_cast<size_t>(lead.trail);
  for (size_t i = 1; i < whole; ++i) {
    if (i == bytes.size()) return {Utf8::kCut, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (byte < low || byte > high) return {Utf8::kBroken, i};
  }
  return {Utf8::kWhole, whole};
}

std::optional<size_t> find_broken_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = first_character(text.substr(at));
    if (step.kind != Utf8::kWhole) return at;
    at += step.length;
  }
  return std::nullopt;
}

void require_utf8(std::string_view text) {
  if (const auto at = find_broken_utf8(text)) {
    throw Error(Code::kInvalidArgument, "cannot tokenize the text: byte " + std::to_string(*at) +
                                            " begins no valid UTF-8 character; send UTF-8");
  }
}

std::string take_characters(std::string& held) {
  std::string text;
  size_t at = 0;
  while (at < held.size()) {
    const Utf8Step step = first_character(std::string_view(held).substr(at));
    if (step.kind == Utf8::kCut) break;
    if (step.kind == Utf8::kWhole) {
      text.append(held, at, step.length);
    } else {
      text.append(kReplacementCharacter);
    }
    at += step.length;
  }
  held.erase(0, at);
  return text;
}

}  // namespace trireme
