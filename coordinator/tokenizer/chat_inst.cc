// SPDX-License-Identifier: Apache-2.0
// [INST] question [/INST] answer</s>: Llama 2 and Mistral. Their checkpoints differ in blanks, in
// where the system message stands, and in whether the brackets are special tokens; a template tells
// which.
#include <algorithm>

#include "coordinator/tokenizer/chat_formats.h"
#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kCallIdBytes = 9;  // Mistral's templates refuse any other

enum class SystemAt { kNowhere, kLlama, kFirst, kLast };

struct InstStyle {
  const char* name;
  SystemAt system;
  const char* begin;  // of a question
  const char* end;
  const char* answer_begin;
  const char* answer_end;  // in front of </s>
  bool strips_answers;
  bool tools = false;
  const char* gap = "";   // between a mark of tools and its list
  const char* next = "";  // behind </s>
};

constexpr InstStyle kStyles[] = {
    {"mistral", SystemAt::kLast, "[INST] ", "[/INST]", " ", "", true, true, " "},
    {"mistral", SystemAt::kLast, "[INST]", "[/INST]", "", "", false, true, ""},
    {"mistral", SystemAt::kLast, "[INST]", "[/INST]", " ", "", true, true, ""},
    {"mistral", SystemAt::kFirst, " [INST] ", " [/INST]", " ", "", false},
    {"mistral", SystemAt::kFirst, "[INST] ", " [/INST]", " ", "", false},
    {"mistral", SystemAt::kFirst, "[INST] ", " [/INST]", "", "", false},
    {"mistral", SystemAt::kNowhere, "[INST] ", " [/INST]", "", "", false, false, "", " "},
    {"mistral", SystemAt::kNowhere, "[INST] ", " [/INST]", "", "", false},
    {"llama2", SystemAt::kLlama, "[INST] ", " [/INST]", " ", " ", true},
};

// Mistral writes a tool's texts as they are, without JSON's escapes.
std::string tool_text(const Tool& tool) {
  std::string text = "{\"type\": \"function\", \"function\": {";
  bool first = true;
  for (const auto& [key, value] : tool.function.dict()->members()) {
    if (key == "return") continue;
    if (!first) text += ", ";
    first = false;
    text += "\"" + key + "\": " +
            (value.text() != nullptr ? "\"" + *value.text() + "\"" : jinja::to_json(value));
  }
  return text + "}}";
}

// An id that is the same whenever the call is.
std::string call_id(const ToolCall& call, size_t index) {
  uint64_t hash = 14695981039346656037ull + index;
  for (const char c : call.name + jinja::to_json(call.arguments)) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  }
  std::string id;
  for (size_t i = 0; i < kCallIdBytes; ++i, hash /= 36) {
    id += "0123456789abcdefghijklmnopqrstuvwxyz"[hash % 36];
  }
  return id;
}

std::vector<ToolCall> read_calls(std::string_view text) {
  std::vector<ToolCall> calls;
  try {
    const jinja::Value value = jinja::parse_json(strip(text));
    if (value.list() == nullptr) return {};
    for (const jinja::Value& one : *value.list()) {
      auto call = read_json_call(one);
      if (!call.has_value()) return {};
      const jinja::Value* const id = one.dict()->find("id");
      const bool usable =
          id != nullptr && id->text() != nullptr && id->text()->size() == kCallIdBytes;
      call->id = usable ? *id->text() : call_id(*call, calls.size());
      calls.push_back(*std::move(call));
    }
  } catch (const Error&) {
    return {};  // a model wrote it: what is no call stays text
  }
  return calls;
}

[[noreturn]] void refuse(size_t index, const std::string& what) {
  throw Error(Code::kInvalidArgument, "messages[" + std::to_string(index) + "]" + what);
}

class Inst final : public ChatFormat {
 public:
  Inst(const Tokenizer& tokenizer, const ChatSettings& settings, const InstStyle& style)
      : ChatFormat(tokenizer), style_(style) {
    prefix_ = settings.prefix;
    stop_ids_ = Prompt(tokenizer).token("</s>").take();
  }
  const char* name() const override { return style_.name; }
  bool knows_tools() const override { return style_.tools; }
  std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool> tools) const override {
    if (tools.empty()) return nullptr;
    return make_marked_answer({.begin = "[TOOL_CALLS]",
                               .begin_id = tokenizer_.special("[TOOL_CALLS]"),
                               .read = read_calls});
  }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    const std::vector<ChatTurn>& turns = conversation.turns;
    check_order(turns);
    if (style_.system == SystemAt::kNowhere && turns[0].role == "system") {
      refuse(0, ".role: found \"system\", allowed: \"user\"; this model knows no system message");
    }
    size_t last_question = 0;
    for (size_t i = 0; i < turns.size(); ++i) {
      if (turns[i].role == "user") last_question = i;
    }
    if (style_.system != SystemAt::kLlama) mark(prompt, "<s>");
    for (size_t i = turns[0].role == "system" ? 1 : 0; i < turns.size(); ++i) {
      const ChatTurn& turn = turns[i];
      if (turn.role == "user") {
        if (!conversation.tools.empty() && i == last_question)
          write_tools(conversation.tools, prompt);
        write_question(turns, i, prompt);
      } else if (turn.role == "tool") {
        write_result(turn, i, prompt);
      } else if (!turn.calls.empty()) {
        write_calls(turn, i, prompt);
      } else {
        const std::string_view text = turn.content;
        prompt.text(style_.answer_begin).text(style_.strips_answers ? strip(text) : text);
        mark(prompt.text(style_.answer_end), "</s>").text(style_.next);
      }
    }
  }

 private:
  // Questions and answers in turn, but for steps with tools.
  static void check_order(const std::vector<ChatTurn>& turns) {
    bool question = true;
    const size_t begin = turns[0].role == "system" ? 1 : 0;
    if (begin == turns.size())
      refuse(0, ".role: found only \"system\", allowed: a question of the role \"user\" after it");
    for (size_t i = begin; i < turns.size(); ++i) {
      if (turns[i].role == "tool" || !turns[i].calls.empty()) continue;
      const char* const wanted = question ? "user" : "assistant";
      if (turns[i].role != wanted) {
        refuse(i, ".role: found \"" + turns[i].role + "\", allowed: \"" + wanted +
                      "\"; this model knows questions and answers in turn");
      }
      question = !question;
    }
  }

  // A mark is a special token, or, where the vocabulary has none, text.
  Prompt& mark(Prompt& prompt, std::string_view text) const {
    return tokenizer_.special(text) ? prompt.token(text) : prompt.text(text);
  }
  // A mark with blanks around it.
  void marked(Prompt& prompt, std::string_view text) const {
    const size_t begin = text.find('[');
    const size_t end = text.find(']') + 1;
    prompt.text(text.substr(0, begin));
    mark(prompt, text.substr(begin, end - begin)).text(text.substr(end));
  }

  void write_question(const std::vector<ChatTurn>& turns, size_t index, Prompt& prompt) const {
    const bool has_system = turns[0].role == "system";
    const std::string& content = turns[index].content;
    std::string text = content;
    if (style_.system == SystemAt::kLlama) {
      if (has_system && index == 1) {
        text = "<<SYS>>\n" + std::string(strip(turns[0].content)) + "\n<</SYS>>\n\n" + content;
      }
      text = strip(text);
      mark(prompt, "<s>");
    } else if (has_system && index == (style_.system == SystemAt::kFirst ? 1 : turns.size() - 1)) {
      text = turns[0].content + "\n\n" + content;
    }
    marked(prompt, style_.begin);
    marked(prompt.text(text), style_.end);
  }

  void write_tools(std::span<const Tool> tools, Prompt& prompt) const {
    mark(prompt, "[AVAILABLE_TOOLS]").text(style_.gap).text("[");
    for (size_t i = 0; i < tools.size(); ++i)
      prompt.text(i > 0 ? ", " : "").text(tool_text(tools[i]));
    mark(prompt.text("]"), "[/AVAILABLE_TOOLS]");
  }

  void write_calls(const ChatTurn& turn, size_t index, Prompt& prompt) const {
    if (!turn.content.empty())
      refuse(index, ".content: found text beside tool_calls, allowed: one of them for this model");
    std::string list;
    for (const ToolCall& call : turn.calls) {
      check_id(call.id, index, ".tool_calls: found an id");
      list += (list.empty() ? "" : ", ") + ("{\"name\": " + jinja::to_json(call.name)) +
              ", \"arguments\": " + jinja::to_json(call.arguments) + ", \"id\": \"" + call.id +
              "\"}";
    }
    mark(prompt, "[TOOL_CALLS]").text(style_.gap).text("[" + list + "]");
    mark(prompt, "</s>");
  }

  void write_result(const ChatTurn& turn, size_t index, Prompt& prompt) const {
    check_id(turn.call_id, index, ".tool_call_id: found one");
    mark(prompt, "[TOOL_RESULTS]").text(style_.gap);
    prompt.text("{\"content\": " + turn.content + ", \"call_id\": \"" + turn.call_id + "\"}");
    mark(prompt, "[/TOOL_RESULTS]");
  }

  static void check_id(const std::string& id, size_t index, const char* what) {
    const bool plain = std::all_of(id.begin(), id.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    });
    if (id.size() == kCallIdBytes && plain) return;
    refuse(index, what + (" of " + std::to_string(id.size())) +
                      " bytes, allowed: 9 letters and digits, as this model's calls have");
  }

  const InstStyle& style_;
};

}  // namespace

FormatVariants make_inst(const ChatSettings& settings, const Tokenizer& tokenizer) {
  FormatVariants variants;
  // Nothing but a template tells these from a base model of the same vocabulary.
  if (settings.chat_template.empty()) return variants;
  for (const InstStyle& style : kStyles)
    variants.push_back(std::make_unique<Inst>(tokenizer, settings, style));
  return variants;
}

}  // namespace trireme
