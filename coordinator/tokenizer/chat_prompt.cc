// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_prompt.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/check.h"

namespace trireme {
namespace {

constexpr std::string_view kBlanks[] = {
    "\t",           "\n",           "\v",           "\f",           "\r",
    "\x1C",         "\x1D",         "\x1E",         "\x1F",         " ",
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
    "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
    "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
    "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

}  // namespace

Prompt& Prompt::token(std::string_view text) {
  const auto id = tokenizer_.special(text);
  CHECK(id.has_value(), "the tokens of the format's row in chat.cc are there");
  return ids({*id});
}

Prompt& Prompt::ids(const std::vector<int32_t>& ids) {
  cut();
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  return *this;
}

Prompt& Prompt::text(std::string_view run) {
  run_ += run;
  return *this;
}

Prompt& Prompt::cut() {
  const std::vector<int32_t> ids = tokenizer_.encode(run_);
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  run_.clear();
  return *this;
}

std::vector<int32_t> Prompt::take() {
  cut();
  return std::move(ids_);
}

std::string_view strip_left(std::string_view text) {
  const auto blank = [&] {
    return std::find_if(std::begin(kBlanks), std::end(kBlanks),
                        [&](std::string_view candidate) { return text.starts_with(candidate); });
  };
  for (auto found = blank(); found != std::end(kBlanks); found = blank())
    text.remove_prefix(found->size());
  return text;
}

std::string_view strip_right(std::string_view text) {
  const auto blank = [&] {
    return std::find_if(std::begin(kBlanks), std::end(kBlanks),
                        [&](std::string_view candidate) { return text.ends_with(candidate); });
  };
  for (auto found = blank(); found != std::end(kBlanks); found = blank())
    text.remove_suffix(found->size());
  return text;
}

std::string_view strip(std::string_view text) { return strip_right(strip_left(text)); }

void append_character(uint32_t point, std::string& out) {
  if (point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
    out += kReplacementCharacter;
    return;
  }
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (point >> shift & 0x3F)); };
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xC0 | point >> 6);
    tail(0);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xE0 | point >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | point >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace trireme
