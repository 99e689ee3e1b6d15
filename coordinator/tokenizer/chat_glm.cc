// SPDX-License-Identifier: Apache-2.0
// ChatGLM2, ChatGLM3 and GLM-4.
#include "coordinator/tokenizer/chat_formats.h"
#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

std::vector<int32_t> special_ids(const Tokenizer& tokenizer,
                                 std::initializer_list<const char*> tokens) {
  Prompt prompt(tokenizer);
  for (const char* token : tokens) prompt.token(token);
  return prompt.take();
}

std::vector<std::string> names_of(std::span<const Tool> tools) {
  std::vector<std::string> names;
  for (const Tool& tool : tools) names.push_back(tool.name);
  return names;
}

std::optional<jinja::Value> read_json_arguments(std::string_view body) {
  try {
    jinja::Value value = jinja::parse_json(body);
    if (value.dict() != nullptr) return value;
  } catch (const Error&) {
    // A model wrote it: what is no call stays text.
  }
  return std::nullopt;
}

// "[Round 1]\n\n问：...\n\n答：...", rounds joined by an empty line, one text.
class ChatGlm2 final : public ChatFormat {
 public:
  explicit ChatGlm2(const Tokenizer& tokenizer) : ChatFormat(tokenizer) {
    prefix_ = special_ids(tokenizer, {"[gMASK]", "sop"});
    stop_ids_ = special_ids(tokenizer, {"</s>"});
  }
  const char* name() const override { return "chatglm2"; }
  std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool>) const override {
    return make_glm_answer({});
  }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    prompt.ids(prefix_);
    for (size_t i = 0; i < conversation.turns.size(); ++i) {
      const ChatTurn& turn = conversation.turns[i];
      const char* const wanted = i % 2 == 0 ? "user" : "assistant";
      if (turn.role != wanted) {
        throw Error(Code::kInvalidArgument,
                    "messages[" + std::to_string(i) + "].role: found \"" + turn.role +
                        "\", allowed: \"" + wanted +
                        "\"; ChatGLM2 knows questions and answers in turn, and no system message");
      }
      if (i % 2 == 0) {
        if (i > 0) prompt.text("\n\n");
        prompt.text("[Round " + std::to_string(i / 2 + 1) + "]\n\n问：" + turn.content +
                    "\n\n答：");
      } else {
        prompt.text(turn.content);
      }
    }
    if (conversation.turns.size() % 2 == 0) {
      throw Error(Code::kInvalidArgument,
                  "messages: the last one is an answer, allowed: a question of the role \"user\"");
    }
  }
};

// Encodes the metadata line and the content apart: each gets sentencepiece's dummy space of its
// own. The published Jinja template joins them and gives other ids than the model's code.
class ChatGlm3 final : public ChatFormat {
 public:
  explicit ChatGlm3(const Tokenizer& tokenizer)
      : ChatFormat(tokenizer), assistant_id_(special_ids(tokenizer, {"<|assistant|>"})[0]) {
    prefix_ = special_ids(tokenizer, {"[gMASK]", "sop"});
    stop_ids_ = special_ids(tokenizer, {"</s>", "<|user|>", "<|observation|>"});
  }
  const char* name() const override { return "chatglm3"; }
  bool knows_tools() const override { return true; }
  bool knows_metadata() const override { return true; }
  std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool> tools) const override {
    GlmAnswerStyle style;
    style.assistant_id = assistant_id_;
    style.read_arguments = read_python_call;
    style.tool_names = names_of(tools);
    if (!tools.empty()) style.call_begin = "```";
    return make_glm_answer(std::move(style));
  }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    prompt.ids(prefix_);
    std::string tools;
    if (!conversation.tools.empty()) {
      jinja::List functions;
      for (const Tool& tool : conversation.tools) functions.push_back(tool.function);
      tools = "\n" + jinja::to_json(jinja::Value(std::move(functions)), {.indent = 4});
      if (conversation.turns[0].role != "system") {
        add(prompt, "system", "", kToolsSystem + tools);
      }
    }
    for (size_t i = 0; i < conversation.turns.size(); ++i) {
      const ChatTurn& turn = conversation.turns[i];
      const std::string role = turn.role == "tool" ? "observation" : turn.role;
      if (i == 0 && role == "system") {
        add(prompt, role, "", turn.content + tools);
      } else if (turn.calls.empty() || !turn.content.empty()) {
        add(prompt, role, turn.metadata, turn.content);
      }
      for (const ToolCall& call : turn.calls) {
        add(prompt, role, call.name, write_python_call(call.arguments));
      }
    }
    prompt.token("<|assistant|>");
  }

 private:
  // What the model was trained on where a conversation with tools has no system message.
  static constexpr const char* kToolsSystem =
      "Answer the following questions as best as you can. You have access to the following tools:";

  static void add(Prompt& prompt, const std::string& role, const std::string& metadata,
                  const std::string& content) {
    prompt.token("<|" + role + "|>").text(metadata + "\n").cut().text(content).cut();
  }
  const int32_t assistant_id_;
};

// How GLM-4's checkpoints differ.
struct GlmStyle {
  std::string opening = {};  // of the answer; not empty: the model cannot name a tool there
  bool tools = false;
  std::string preamble = {};   // of the section of tools
  const char* first_gap = "";  // in front of the first tool, and of each further one
  const char* next_gap = "";
  const char* name_end = "";  // between a tool's name and its line's end
};

// [gMASK]<sop>, <|role|> newline content for each message, <|assistant|>.
class Glm final : public ChatFormat {
 public:
  Glm(const Tokenizer& tokenizer, GlmStyle style)
      : ChatFormat(tokenizer),
        style_(std::move(style)),
        assistant_id_(special_ids(tokenizer, {"<|assistant|>"})[0]) {
    prefix_ = special_ids(tokenizer, {"[gMASK]", "<sop>"});
    stop_ids_ = special_ids(tokenizer, {"<|endoftext|>", "<|user|>", "<|observation|>"});
  }
  const char* name() const override { return "glm"; }
  bool knows_tools() const override { return style_.tools; }
  bool knows_metadata() const override { return style_.tools; }
  std::unique_ptr<AnswerReader> answer_reader(std::span<const Tool> tools) const override {
    if (!style_.opening.empty()) return nullptr;
    GlmAnswerStyle style;
    style.assistant_id = assistant_id_;
    style.read_arguments = read_json_arguments;
    style.tool_names = names_of(tools);
    if (!tools.empty()) style.call_begin = "{";
    return make_glm_answer(std::move(style));
  }

 protected:
  void write(const Conversation& conversation, Prompt& prompt) const override {
    prompt.ids(prefix_);
    if (!conversation.tools.empty()) {
      prompt.token("<|system|>").text("\n" + style_.preamble + "# 可用工具");
      const char* gap = style_.first_gap;
      for (const Tool& tool : conversation.tools) {
        prompt.text(gap + ("## " + tool.name) + "\n\n" +
                    jinja::to_json(tool.function, {.indent = 4}) +
                    "\n在调用上述函数时，请使用 Json 格式表示调用的参数。");
        gap = style_.next_gap;
      }
    }
    for (const ChatTurn& turn : conversation.turns) {
      if (turn.calls.empty() || !turn.content.empty()) {
        add(prompt, turn.role == "tool" ? "observation" : turn.role, turn.metadata, turn.content);
      }
      for (const ToolCall& call : turn.calls) {
        add(prompt, turn.role, call.name, jinja::to_json(call.arguments));
      }
    }
    prompt.token("<|assistant|>").text(style_.opening);
  }

 private:
  void add(Prompt& prompt, const std::string& role, const std::string& metadata,
           const std::string& content) const {
    const char* const end = metadata.empty() ? "" : style_.name_end;
    prompt.token("<|" + role + "|>").text(metadata + end + "\n" + content);
  }

  const GlmStyle style_;
  const int32_t assistant_id_;
};

// What a template writes between <|system|> and the heading of the tools; checkpoints differ in the
// name that they give the model.
std::string tools_preamble(const ChatSettings& settings) {
  constexpr std::string_view kSystem = "<|system|>\n";
  const std::string_view text = settings.chat_template;
  const size_t end = text.find("# 可用工具");
  const size_t begin = end == text.npos ? text.npos : text.rfind(kSystem, end);
  if (begin != text.npos) {
    const std::string_view found =
        text.substr(begin + kSystem.size(), end - begin - kSystem.size());
    if (found.size() < 1024 && found.find('{') == found.npos) return std::string(found);
  }
  if (settings.family == "glm4") return "";
  return "你是一个名为 ChatGLM 的人工智能助手。"
         "你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
         "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n";
}

}  // namespace

FormatVariants make_chatglm(const ChatSettings& settings, const Tokenizer& tokenizer) {
  FormatVariants variants;
  if (settings.is_chatglm2) {
    variants.push_back(std::make_unique<ChatGlm2>(tokenizer));
  } else {
    variants.push_back(std::make_unique<ChatGlm3>(tokenizer));
  }
  return variants;
}

FormatVariants make_glm(const ChatSettings& settings, const Tokenizer& tokenizer) {
  const std::string preamble = tools_preamble(settings);
  const bool is_0414 = preamble.empty();
  FormatVariants variants;
  const auto add = [&](GlmStyle style) {
    variants.push_back(std::make_unique<Glm>(tokenizer, std::move(style)));
  };
  // Without a template the code that came with family "chatglm" decides; transformers' own families
  // have the newline in the prompt.
  if (settings.chat_template.empty() && settings.family != "chatglm") add({.opening = "\n"});
  for (const auto& [first, next] :
       {std::pair("\n\n", is_0414 ? "\n" : "\n\n"), std::pair("\n", "\n"),
        std::pair("\n\n", is_0414 ? "\n\n" : "\n")}) {
    for (const char* name_end : {is_0414 ? " " : "", is_0414 ? "" : " "}) {
      add({"", true, preamble, first, next, name_end});
    }
  }
  add({.opening = "\n"});
  add({.opening = ""});
  return variants;
}

}  // namespace trireme
