// SPDX-License-Identifier: Apache-2.0
// A model to ask, requests that it takes, and tables of those that it does not.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/validate.h"
#include "kernels/base/error.h"

namespace trireme {

inline constexpr int32_t kContext = 32;
inline constexpr int32_t kVocab = 300;
inline constexpr int32_t kEos = 257;
inline constexpr int32_t kEndOfTurn = 258;

// A byte is an id.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string bytes_of(int32_t id, bool) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : "";
  }
  bool is_special(int32_t id) const override { return id >= 256; }
  std::optional<int32_t> special(std::string_view) const override { return std::nullopt; }
  int32_t size() const override { return 260; }
};

class PlainChat final : public ChatFormat {
 public:
  explicit PlainChat(const Tokenizer& tokenizer) : ChatFormat(tokenizer) {
    stop_ids_ = {kEndOfTurn};
  }
  const char* name() const override { return "plain"; }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    for (const ChatTurn& turn : conversation.turns) prompt.text(turn.content).ids({kEndOfTurn});
  }
};

struct Fixture {
  ModelSpec spec;
  ByteTokenizer tokenizer;
  PlainChat chat{tokenizer};
  Fixture() {
    spec.set_vocab_size(kVocab);
    spec.add_stop_ids(kEos);
  }
  ServedModel model() const { return {spec, tokenizer, chat, kContext}; }
};

inline v1::GenerateRequest good_generate() {
  v1::GenerateRequest request;
  request.set_text("hello");
  return request;
}

inline v1::ChatRequest good_chat() {
  v1::ChatRequest request;
  v1::ChatMessage& message = *request.add_messages();
  message.set_role("user");
  message.set_content("hello");
  return request;
}

// What is wrong, the code, and what the message must hold: first the field's path.
template <class Message>
struct Row {
  const char* name;
  std::function<void(Message&)> spoil;
  Code code;
  std::vector<std::string> words;
};

using GenerateRow = Row<v1::GenerateRequest>;
using ChatRow = Row<v1::ChatRequest>;

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr Code kBad = Code::kInvalidArgument;
inline constexpr Code kLacking = Code::kUnimplemented;

template <class Message>
void expect_refused(const Row<Message>& row, Message message) {
  row.spoil(message);
  const Fixture fixture;
  try {
    prepare(message, fixture.model());
    FAIL() << row.name << ": was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), row.code) << row.name << ": " << error.what();
    EXPECT_EQ(std::string(error.what()).rfind(row.words.at(0), 0), 0u)
        << row.name << ": " << error.what();
    for (const std::string& word : row.words) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
          << row.name << ": \"" << word << "\" is missing: " << error.what();
    }
    // A row that says what is allowed says all of it.
    if (row.words.at(0).find(", allowed: ") != std::string::npos) {
      EXPECT_EQ(error.what(), row.words.at(0)) << row.name;
    }
  }
}

}  // namespace trireme
