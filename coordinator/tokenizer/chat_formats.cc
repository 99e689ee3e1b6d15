// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_formats.h"

#include <utility>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

void check_turns(std::span<const ChatTurn> turns) {
  if (turns.empty()) {
    throw Error(Code::kInvalidArgument,
                "cannot make a prompt: the conversation has no message; send at least one");
  }
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string where = "cannot make a prompt: message " + std::to_string(i);
    const std::string& role = turns[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      // A role that is not UTF-8 could not be sent back in a gRPC status.
      const bool printable = role.size() <= 64 && !find_broken_utf8(role).has_value();
      throw Error(Code::kInvalidArgument,
                  where + " has " + (printable ? "the role \"" + role + "\"" : "an unknown role") +
                      "; use system, user or assistant");
    }
    if (const auto at = find_broken_utf8(turns[i].content)) {
      throw Error(Code::kInvalidArgument, where + ": byte " + std::to_string(*at) +
                                              " begins no valid UTF-8 character; send UTF-8");
    }
  }
}

// Special tokens by id, and runs of ordinary text between them, each encoded as one text.
class Prompt {
 public:
  explicit Prompt(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  Prompt& token(std::string_view text) {
    const auto id = tokenizer_.special(text);
    CHECK(id.has_value(), "the tokens of the format's row in chat.cc are there");
    ids_.push_back(*id);
    return *this;
  }
  Prompt& text(std::string_view run) {
    const std::vector<int32_t> ids = tokenizer_.encode(run);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    return *this;
  }
  const std::vector<int32_t>& ids() const { return ids_; }

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
};

std::string role_token(const std::string& role) { return "<|" + role + "|>"; }

// Encodes the metadata line, here always empty, and the content apart: each gets sentencepiece's
// dummy space of its own. The published Jinja template joins them and gives other ids than the
// model's code.
class ChatGlm3 final : public ChatFormat {
 public:
  explicit ChatGlm3(const Tokenizer& tokenizer) : ChatFormat(tokenizer) {
    prefix_ = Prompt(tokenizer).token("[gMASK]").token("sop").ids();
    stop_ids_ = Prompt(tokenizer).token("</s>").token("<|user|>").token("<|observation|>").ids();
  }
  const char* name() const override { return "chatglm3"; }
  std::vector<int32_t> render(std::span<const ChatTurn> turns) const override {
    check_turns(turns);
    Prompt prompt(tokenizer_);
    prompt.token("[gMASK]").token("sop");
    for (const ChatTurn& turn : turns) {
      prompt.token(role_token(turn.role)).text("\n").text(turn.content);
    }
    return prompt.token("<|assistant|>").ids();
  }
};

// [gMASK]<sop>, <|role|> newline content for each message, <|assistant|> newline.
class Glm final : public ChatFormat {
 public:
  Glm(const Tokenizer& tokenizer, std::string opening)
      : ChatFormat(tokenizer), opening_(std::move(opening)) {
    prefix_ = Prompt(tokenizer).token("[gMASK]").token("<sop>").ids();
    stop_ids_ =
        Prompt(tokenizer).token("<|endoftext|>").token("<|user|>").token("<|observation|>").ids();
  }
  const char* name() const override { return "glm"; }
  std::vector<int32_t> render(std::span<const ChatTurn> turns) const override {
    check_turns(turns);
    Prompt prompt(tokenizer_);
    prompt.token("[gMASK]").token("<sop>");
    for (const ChatTurn& turn : turns) {
      prompt.token(role_token(turn.role)).text("\n" + turn.content);
    }
    return prompt.token("<|assistant|>").text(opening_).ids();
  }

 private:
  const std::string opening_;  // of the answer
};

// <|im_start|>role newline content<|im_end|> newline.
class ChatMl final : public ChatFormat {
 public:
  ChatMl(const Tokenizer& tokenizer, const ChatSettings& settings)
      : ChatFormat(tokenizer), default_system_(default_system_message(settings.chat_template)) {
    prefix_ = settings.prefix;
    stop_ids_ = Prompt(tokenizer).token("<|im_end|>").ids();
    // Qwen ends a text by <|endoftext|>; for SmolLM it is the unknown token.
    const auto end = tokenizer.special("<|endoftext|>");
    if (settings.family.starts_with("qwen") && end.has_value()) stop_ids_.push_back(*end);
  }
  const char* name() const override { return "chatml"; }
  std::vector<int32_t> render(std::span<const ChatTurn> turns) const override {
    check_turns(turns);
    Prompt prompt(tokenizer_);
    if (default_system_.has_value() && turns[0].role != "system") {
      add(prompt, "system", *default_system_);
    }
    for (const ChatTurn& turn : turns) add(prompt, turn.role, turn.content);
    return prompt.token("<|im_start|>").text("assistant\n").ids();
  }

 private:
  static void add(Prompt& prompt, const std::string& role, const std::string& content) {
    prompt.token("<|im_start|>").text(role + "\n" + content).token("<|im_end|>").text("\n");
  }
  const std::optional<std::string> default_system_;
};

// Python's str.strip, which Llama 3's template applies to each content.
std::string_view strip(std::string_view text) {
  static constexpr std::string_view kBlanks[] = {
      "\t",           "\n",           "\v",           "\f",           "\r",
      "\x1C",         "\x1D",         "\x1E",         "\x1F",         " ",
      "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
      "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
      "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
      "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view blank : kBlanks) {
      if (text.starts_with(blank)) {
        text.remove_prefix(blank.size());
        found = true;
      }
      if (text.ends_with(blank)) {
        text.remove_suffix(blank.size());
        found = true;
      }
    }
  }
  return text;
}

class Llama3 final : public ChatFormat {
 public:
  Llama3(const Tokenizer& tokenizer, const ChatSettings& settings) : ChatFormat(tokenizer) {
    prefix_ = settings.prefix;
    stop_ids_ = Prompt(tokenizer).token("<|eot_id|>").token("<|end_of_text|>").ids();
  }
  const char* name() const override { return "llama3"; }
  std::vector<int32_t> render(std::span<const ChatTurn> turns) const override {
    check_turns(turns);
    Prompt prompt(tokenizer_);
    prompt.token("<|begin_of_text|>");
    for (const ChatTurn& turn : turns)
      add(prompt, turn.role, strip(turn.content)).token("<|eot_id|>");
    return add(prompt, "assistant", "").ids();
  }

 private:
  static Prompt& add(Prompt& prompt, const std::string& role, std::string_view content) {
    prompt.token("<|start_header_id|>").text(role).token("<|end_header_id|>");
    return prompt.text("\n\n" + std::string(content));
  }
};

class NoChat final : public ChatFormat {
 public:
  NoChat(const Tokenizer& tokenizer, const ChatSettings& settings) : ChatFormat(tokenizer) {
    prefix_ = settings.prefix;
  }
  const char* name() const override { return "none"; }
  std::vector<int32_t> render(std::span<const ChatTurn>) const override {
    throw Error(
        Code::kUnimplemented,
        "cannot chat with this model: its tokenizer has the special tokens of no known chat "
        "format (ChatGLM3, GLM, ChatML, Llama 3); use Generate with a plain prompt");
  }
};

}  // namespace

std::unique_ptr<ChatFormat> make_chatglm3(const ChatSettings&, const Tokenizer& tokenizer) {
  return std::make_unique<ChatGlm3>(tokenizer);
}

std::unique_ptr<ChatFormat> make_glm(const ChatSettings& settings, const Tokenizer& tokenizer) {
  // Some templates of GLM-4 leave the newline to the model; the last mention of the token tells.
  const std::string& text = settings.chat_template;
  const size_t at = text.rfind("<|assistant|>");
  const std::string after = at == text.npos ? "\n" : text.substr(at + 13, 2);
  const bool newline = after.starts_with('\n') || after == "\\n";
  return std::make_unique<Glm>(tokenizer, newline ? "\n" : "");
}

std::unique_ptr<ChatFormat> make_chatml(const ChatSettings& settings, const Tokenizer& tokenizer) {
  return std::make_unique<ChatMl>(tokenizer, settings);
}

std::unique_ptr<ChatFormat> make_llama3(const ChatSettings& settings, const Tokenizer& tokenizer) {
  return std::make_unique<Llama3>(tokenizer, settings);
}

std::unique_ptr<ChatFormat> make_no_chat(const ChatSettings& settings, const Tokenizer& tokenizer) {
  return std::make_unique<NoChat>(tokenizer, settings);
}

}  // namespace trireme
