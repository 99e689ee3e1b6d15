// SPDX-License-Identifier: Apache-2.0
// ChatML and Qwen's tools in it: <|im_start|>role newline content<|im_end|> newline.
#include "coordinator/tokenizer/chat_formats.h"
#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr const char* kToolsBegin =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
    "provided with function signatures within <tools></tools> XML tags:\n<tools>";
constexpr const char* kToolsEnd =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n";
constexpr const char* kCallPattern =
    "{\"name\": <function-name>, \"arguments\": <args-json-object>}";
constexpr const char* kCallEnd = "\n</tool_call>";
constexpr std::string_view kThinkEnd = "</think>";

struct ChatMlStyle {
  const char* name = "chatml";
  bool tools = false;
  std::optional<std::string> default_system = {};  // where the conversation has none
  // Earlier answers go without what they thought; the last one, after the last question, with it.
  bool drops_thoughts = false;
  bool keeps_last_thoughts = false;
  std::string opening = {};     // of the answer, such as "<think>\n"
  bool doubles_braces = false;  // around the pattern of a call: the first of Qwen2.5's templates
};

std::vector<ToolCall> read_calls(std::string_view text) {
  auto call = read_json_call(strip(text));
  return call.has_value() ? std::vector<ToolCall>{*std::move(call)} : std::vector<ToolCall>{};
}

std::string_view strip_newlines(std::string_view text) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  return text;
}

class ChatMl final : public ChatFormat {
 public:
  ChatMl(const Tokenizer& tokenizer, const ChatSettings& settings, ChatMlStyle style)
      : ChatFormat(tokenizer), style_(std::move(style)) {
    prefix_ = settings.prefix;
    stop_ids_ = Prompt(tokenizer).token("<|im_end|>").take();
    // Qwen ends a text by <|endoftext|>; for SmolLM it is the unknown token.
    const auto end = tokenizer.special("<|endoftext|>");
    if (settings.family.starts_with("qwen") && end.has_value()) stop_ids_.push_back(*end);
  }
  const char* name() const override { return style_.name; }
  bool knows_tools() const override { return style_.tools; }
  std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool> tools) const override {
    if (tools.empty()) return nullptr;
    // Where a checkpoint calls the mark special, its text is not found in an answer.
    const auto begin_id = tokenizer_.special("<tool_call>");
    return make_marked_answer({.begin = "<tool_call>",
                               .end = begin_id ? "" : "</tool_call>",
                               .begin_id = begin_id,
                               .read = read_calls});
  }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    const std::vector<ChatTurn>& turns = conversation.turns;
    write_system(conversation, prompt);
    const size_t last_question = find_last_question(turns);
    for (size_t i = turns[0].role == "system" ? 1 : 0; i < turns.size(); ++i) {
      const ChatTurn& turn = turns[i];
      if (turn.role == "tool") {
        write_result(turns, i, prompt);
      } else if (turn.role == "assistant") {
        begin(prompt, turn.role).text(answer_text(turn, i > last_question, i + 1 == turns.size()));
        end(prompt);
      } else {
        begin(prompt, turn.role).text("\n" + turn.content);
        end(prompt);
      }
    }
    begin(prompt, "assistant").text("\n" + style_.opening);
  }

 private:
  static Prompt& begin(Prompt& prompt, const std::string& role) {
    return prompt.token("<|im_start|>").text(role);
  }
  static void end(Prompt& prompt) { prompt.token("<|im_end|>").text("\n"); }

  void write_system(const Conversation& conversation, Prompt& prompt) const {
    const ChatTurn& first = conversation.turns[0];
    std::optional<std::string> system = style_.default_system;
    if (first.role == "system") system = first.content;
    if (!conversation.tools.empty()) {
      std::string tools = kToolsBegin;
      for (const Tool& tool : conversation.tools) tools += "\n" + jinja::to_json(tool.whole);
      const std::string pattern =
          style_.doubles_braces ? "{" + std::string(kCallPattern) + "}" : kCallPattern;
      system =
          (system.has_value() ? *system + "\n\n" : "") + tools + kToolsEnd + pattern + kCallEnd;
    }
    if (!system.has_value()) return;
    begin(prompt, "system").text("\n" + *system);
    end(prompt);
  }

  // Qwen3 keeps the thoughts of answers that no question has followed yet: steps with tools.
  static size_t find_last_question(const std::vector<ChatTurn>& turns) {
    for (size_t i = turns.size(); i-- > 0;) {
      const std::string& content = turns[i].content;
      const bool result =
          content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
      if (turns[i].role == "user" && !result) return i;
    }
    return turns.size() - 1;
  }

  std::string answer_text(const ChatTurn& turn, bool after_question, bool last) const {
    std::string text =
        style_.drops_thoughts ? without_thoughts(turn, after_question, last) : "\n" + turn.content;
    // Qwen2.5 has no empty line for an empty content.
    if (!turn.calls.empty() && turn.content.empty() && !style_.drops_thoughts) text.clear();
    for (size_t i = 0; i < turn.calls.size(); ++i) {
      const ToolCall& call = turn.calls[i];
      if (i > 0 || text != "\n") text += '\n';
      text += "<tool_call>\n{\"name\": \"" + call.name +
              "\", \"arguments\": " + jinja::to_json(call.arguments) + "}\n</tool_call>";
    }
    return text;
  }

  std::string without_thoughts(const ChatTurn& turn, bool after_question, bool last) const {
    const std::string_view content = turn.content;
    const size_t end = content.rfind(kThinkEnd);
    if (end == content.npos && !(style_.keeps_last_thoughts && after_question && last)) {
      return "\n" + turn.content;
    }
    std::string_view rest = content;
    std::string_view thoughts;
    if (end != content.npos) {
      rest = strip_newlines(content.substr(end + kThinkEnd.size()));
      thoughts = content.substr(0, content.find(kThinkEnd));
      while (thoughts.ends_with('\n')) thoughts.remove_suffix(1);
      if (const size_t begin = thoughts.rfind("<think>"); begin != thoughts.npos) {
        thoughts.remove_prefix(begin + 7);
      }
      thoughts = strip_newlines(thoughts);
    }
    if (!style_.keeps_last_thoughts || !after_question || (!last && thoughts.empty())) {
      return "\n" + std::string(rest);
    }
    return "\n<think>\n" + std::string(thoughts) + "\n</think>\n\n" +
           std::string(strip_newlines(rest));
  }

  static void write_result(const std::vector<ChatTurn>& turns, size_t i, Prompt& prompt) {
    if (i == 0 || turns[i - 1].role != "tool") begin(prompt, "user");
    prompt.text("\n<tool_response>\n" + turns[i].content + "\n</tool_response>");
    if (i + 1 == turns.size() || turns[i + 1].role != "tool") end(prompt);
  }

  const ChatMlStyle style_;
};

// Whether the vocabulary has the text as one token: made for a model that writes it.
bool has_word(const Tokenizer& tokenizer, const char* text) {
  return tokenizer.special(text).has_value() || tokenizer.encode(text).size() == 1;
}

}  // namespace

FormatVariants make_chatml(const ChatSettings& settings, const Tokenizer& tokenizer) {
  const auto system = default_system_message(settings.chat_template);
  const bool calls = has_word(tokenizer, "<tool_call>");
  const bool thinks = calls && has_word(tokenizer, "<think>");
  const bool has_template = !settings.chat_template.empty();
  FormatVariants variants;
  const auto add = [&](ChatMlStyle style) {
    style.default_system = system;
    variants.push_back(std::make_unique<ChatMl>(tokenizer, settings, std::move(style)));
  };
  const auto add_qwen3 = [&] {
    add({.name = "qwen3", .tools = true, .drops_thoughts = true, .keeps_last_thoughts = true});
    if (!has_template) return;
    for (const char* opening : {"<think>\n", "<think>\n\n</think>\n\n"}) {
      add({"qwen3", true, {}, true, true, opening});
      add({"qwen3", true, {}, true, false, opening});
    }
    add({.name = "qwen3", .tools = true, .drops_thoughts = true});
  };
  if (thinks) add_qwen3();
  if (calls || has_template) add({.name = "qwen2.5", .tools = true});
  if (has_template) add({.name = "qwen2.5", .tools = true, .doubles_braces = true});
  if (!thinks && has_template) add_qwen3();
  add({});
  return variants;
}

}  // namespace trireme
