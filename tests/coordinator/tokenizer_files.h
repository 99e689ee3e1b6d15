// SPDX-License-Identifier: Apache-2.0
// What the tests of tokenizers share: where checkpoints lie, JSON to change, random texts.
#pragma once

#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/worker/model_files.h"

namespace trireme {

inline const std::string kShared = TRIREME_SOURCE_DIR "/../shared/data/";

inline nlohmann::json read_json_file(const std::string& file) {
  const std::string bytes = read_whole(file);
  if (bytes.empty()) throw std::runtime_error("cannot read " + file);
  return nlohmann::json::parse(bytes);
}

// A sound tokenizer.json for a test to change.
inline nlohmann::json tiny_json() { return read_json_file(test_data("tiny-qwen2/tokenizer.json")); }

inline void append_character(std::string& text, uint32_t point) {
  const auto add = [&](uint32_t byte) { text += static_cast<char>(byte); };
  if (point < 0x80) return add(point);
  if (point < 0x800) {
    add(0xC0 | point >> 6);
  } else {
    if (point < 0x10000) {
      add(0xE0 | point >> 12);
    } else {
      add(0xF0 | point >> 18);
      add(0x80 | (point >> 12 & 0x3F));
    }
    add(0x80 | (point >> 6 & 0x3F));
  }
  add(0x80 | (point & 0x3F));
}

// Words, blanks, controls, combining marks, Chinese, emoji and any other character.
inline std::string random_text(std::mt19937& random) {
  static const std::vector<std::string> kWords = {" the",
                                                  "model",
                                                  "'ll",
                                                  "'T",
                                                  "1234",
                                                  "\r\n",
                                                  "   ",
                                                  "你好",
                                                  "分布式",
                                                  "🚀",
                                                  "👨‍👩‍👧",
                                                  "e\u0301",
                                                  "q\u0307\u0323",
                                                  "<|user|>",
                                                  "<|im_end|>",
                                                  "def f(x):",
                                                  "\u00A0",
                                                  "\u2028",
                                                  "é",
                                                  "한국어",
                                                  "\u212B"};
  static constexpr uint32_t kPlanes[] = {0x20, 0x80, 0x800, 0xD800, 0x10000, 0x110000};
  std::string text;
  for (size_t left = random() % 24; left > 0; --left) {
    if (random() % 2 == 0) {
      text += kWords[random() % kWords.size()];
      continue;
    }
    uint32_t point = random() % kPlanes[random() % std::size(kPlanes)];
    if (point >= 0xD800 && point < 0xE000) point = 0xFFFD;  // no surrogates in UTF-8
    append_character(text, point);
  }
  return text;
}

}  // namespace trireme
