// SPDX-License-Identifier: Apache-2.0
// Llama 3, and Llama 3.1 to 3.3 with their dates and tools.
#include <ctime>

#include "coordinator/tokenizer/chat_formats.h"
#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

std::vector<int32_t> end_ids(const Tokenizer& tokenizer) {
  return Prompt(tokenizer).token("<|eot_id|>").token("<|end_of_text|>").take();
}

// <|start_header_id|>role<|end_header_id|>, an empty line, the content without blanks around it.
Prompt& add(Prompt& prompt, const std::string& role, std::string_view content) {
  prompt.token("<|start_header_id|>").text(role).token("<|end_header_id|>");
  return prompt.text("\n\n" + std::string(content));
}

class Llama3 final : public ChatFormat {
 public:
  Llama3(const Tokenizer& tokenizer, const ChatSettings& settings) : ChatFormat(tokenizer) {
    prefix_ = settings.prefix;
    stop_ids_ = end_ids(tokenizer);
  }
  const char* name() const override { return "llama3"; }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    prompt.token("<|begin_of_text|>");
    for (const ChatTurn& turn : conversation.turns) {
      add(prompt, turn.role, strip(turn.content)).token("<|eot_id|>");
    }
    add(prompt, "assistant", "");
  }
};

std::vector<ToolCall> read_calls(std::string_view text) {
  auto call = read_json_call(strip(text));
  return call.has_value() ? std::vector<ToolCall>{*std::move(call)} : std::vector<ToolCall>{};
}

// The system message tells the date; tools stand in front of the first question.
class Llama31 final : public ChatFormat {
 public:
  // today: the date is the day of the request, else the fixed one of Llama 3.1's template.
  Llama31(const Tokenizer& tokenizer, const ChatSettings& settings, bool today)
      : ChatFormat(tokenizer), today_(today) {
    prefix_ = settings.prefix;
    stop_ids_ = end_ids(tokenizer);
    if (const auto id = tokenizer.special("<|eom_id|>")) stop_ids_.push_back(*id);
  }
  const char* name() const override { return "llama3.1"; }
  bool knows_tools() const override { return true; }
  std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool> tools) const override {
    if (tools.empty()) return nullptr;
    return make_marked_answer({.begin = "<|python_tag|>",
                               .end = "",
                               .begin_id = tokenizer_.special("<|python_tag|>").value_or(-1),
                               .brace_begins = true,
                               .read = read_calls});
  }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    const std::vector<ChatTurn>& turns = conversation.turns;
    const bool has_tools = !conversation.tools.empty();
    size_t at = turns[0].role == "system" ? 1 : 0;
    prompt.token("<|begin_of_text|>");
    add(prompt, "system", has_tools ? "Environment: ipython\n" : "");
    prompt.text("Cutting Knowledge Date: December 2023\nToday Date: " + date() + "\n\n");
    if (at > 0) prompt.text(strip(turns[0].content));
    prompt.token("<|eot_id|>");
    if (has_tools) {
      if (at == turns.size() || turns[at].role != "user") {
        throw Error(Code::kInvalidArgument,
                    "messages: no question of the role \"user\" comes first, allowed: one, for "
                    "this model's tools are told with it");
      }
      write_tools(conversation.tools, turns[at++], prompt);
    }
    for (; at < turns.size(); ++at) write_turn(turns[at], at, prompt);
    add(prompt, "assistant", "");
  }

 private:
  static void write_tools(std::span<const Tool> tools, const ChatTurn& question, Prompt& prompt) {
    add(prompt, "user",
        "Given the following functions, please respond with a JSON for a function call with its "
        "proper arguments that best answers the given prompt.\n\nRespond in the format {\"name\": "
        "function name, \"parameters\": dictionary of argument name and its value}.Do not use "
        "variables.\n\n");
    for (const Tool& tool : tools) {
      prompt.text(jinja::to_json(tool.whole, {.indent = 4}) + "\n\n");
    }
    prompt.text(strip(question.content)).token("<|eot_id|>");
  }

  static void write_turn(const ChatTurn& turn, size_t index, Prompt& prompt) {
    if (turn.role == "tool") {
      add(prompt, "ipython", jinja::to_json(jinja::Value(turn.content)));
    } else if (turn.calls.empty()) {
      add(prompt, turn.role, strip(turn.content));
    } else {
      const std::string place = "messages[" + std::to_string(index) + "]";
      if (turn.calls.size() > 1 || !turn.content.empty()) {
        throw Error(Code::kInvalidArgument,
                    place + ": found " + std::to_string(turn.calls.size()) + " tool_calls and " +
                        std::to_string(turn.content.size()) +
                        " bytes of content, allowed: one call and no content with it in the "
                        "format of Llama 3.1");
      }
      add(prompt, turn.role,
          "{\"name\": \"" + turn.calls[0].name +
              "\", \"parameters\": " + jinja::to_json(turn.calls[0].arguments) + "}");
    }
    prompt.token("<|eot_id|>");
  }

  std::string date() const {
    if (!today_) return "26 Jul 2024";
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    localtime_r(&now, &parts);
    char text[32];
    return {text, std::strftime(text, sizeof text, "%d %b %Y", &parts)};
  }

  const bool today_;
};

}  // namespace

FormatVariants make_llama3(const ChatSettings& settings, const Tokenizer& tokenizer) {
  FormatVariants variants;
  variants.push_back(std::make_unique<Llama3>(tokenizer, settings));
  // Only a template tells these apart.
  if (settings.chat_template.empty()) return variants;
  variants.push_back(std::make_unique<Llama31>(tokenizer, settings, false));
  variants.push_back(std::make_unique<Llama31>(tokenizer, settings, true));
  return variants;
}

}  // namespace trireme
