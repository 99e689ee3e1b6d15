// SPDX-License-Identifier: Apache-2.0
#include "kernels/base/error.h"

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "kernels/base/printable.h"

namespace trireme {
namespace {

// Bytes of the UTF-8 character that `text` begins with; 0 if there is none, or a control character.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return lead < 0x20 || lead == 0x7F ? 0 : 1;
  const size_t length = lead < 0xC2 || lead > 0xF4 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, beyond U+10FFFF, C1 controls.
  const bool bad = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
                   (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F) ||
                   (lead == 0xC2 && byte(1) < 0xA0);
  return bad ? 0 : length;
}

// Of a long message the middle goes: what was quoted, and not what to do.
std::string fit_to_show(std::string_view message) {
  constexpr std::string_view kCut = " … ";
  constexpr size_t kPart = (kMaxErrorBytes - kCut.size()) / 2;
  if (message.size() <= kMaxErrorBytes) return printable(message);
  const auto inside = [&](size_t at) { return (static_cast<uint8_t>(message[at]) & 0xC0) == 0x80; };
  size_t head = kPart;
  size_t tail = message.size() - kPart;
  while (head > 0 && inside(head)) --head;
  while (tail < message.size() && inside(tail)) ++tail;
  return printable(message.substr(0, head)).append(kCut) + printable(message.substr(tail));
}

}  // namespace

std::string printable(std::string_view message) {
  std::string text;
  while (!message.empty()) {
    const size_t bytes = character_bytes(message);
    if (bytes > 0) {
      text.append(message.substr(0, bytes));
    } else {
      text += message[0] == '\n' ? ' ' : '?';
    }
    message.remove_prefix(std::max<size_t>(bytes, 1));
  }
  return text;
}

Error::Error(Code code, const std::string& message)
    : std::runtime_error(fit_to_show(message)), code_(code) {}

const char* code_name(Code code) {
  switch (code) {
    case Code::kCancelled: return "CANCELLED";
    case Code::kInvalidArgument: return "INVALID_ARGUMENT";
    case Code::kDeadlineExceeded: return "DEADLINE_EXCEEDED";
    case Code::kNotFound: return "NOT_FOUND";
    case Code::kAlreadyExists: return "ALREADY_EXISTS";
    case Code::kPermissionDenied: return "PERMISSION_DENIED";
    case Code::kResourceExhausted: return "RESOURCE_EXHAUSTED";
    case Code::kFailedPrecondition: return "FAILED_PRECONDITION";
    case Code::kOutOfRange: return "OUT_OF_RANGE";
    case Code::kUnimplemented: return "UNIMPLEMENTED";
    case Code::kInternal: return "INTERNAL";
    case Code::kUnavailable: return "UNAVAILABLE";
    case Code::kUnauthenticated: return "UNAUTHENTICATED";
  }
  return "UNKNOWN";
}

}  // namespace trireme
