// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_template.h"

#include <algorithm>
#include <ctime>

#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "coordinator/tokenizer/jinja/template.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

using jinja::Dict;
using jinja::List;
using jinja::Value;

constexpr size_t kRenderedBytesMax = size_t{64} << 10;
constexpr size_t kSpecialBytesMax = 64;

// What a template or a format makes of a conversation: ids, or a refusal.
struct Outcome {
  std::vector<int32_t> ids;
  bool refused = false;
  std::string reason;
};

ToolCall weather_call() {
  Dict arguments;
  arguments.set("city", "北京");
  arguments.set("days", 3);
  return {"get_weather", Value(std::move(arguments)), "abcDEF123"};
}

std::vector<Tool> some_tools() {
  return read_tools(R"([
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a <city> & \"more\" 天气",
      "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "its name"},
        "days": {"type": "integer", "description": "how many"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "roll", "description": "A die",
      "parameters": {"type": "object", "properties": {}}}}])");
}

// The conversations that are compared. thoughts: whether <think> is ordinary text.
std::vector<Conversation> conversations(bool tools, bool thoughts) {
  const ChatTurn system{"system", "You are  helpful. 请用中文。"};
  const ChatTurn question{"user", "  你好 👋🏽, what's new?\n"};
  const ChatTurn answer{"assistant", "Nothing — 没有。"};
  const ChatTurn more{"user", "Tell me\nmore."};
  std::vector<Conversation> all;
  all.push_back({{question, answer, more}});
  all.push_back({{question}});
  all.push_back({{system, question, answer, more}});
  if (thoughts) {
    all.push_back({{question, {"assistant", "<think>\nhm\n</think>\n\nYes."}, more}});
  }
  if (!tools) return all;
  ChatTurn call{"assistant", ""};
  call.calls.push_back(weather_call());
  ChatTurn result{"tool", "{\"temperature\": 22, \"sky\": \"晴\"}"};
  result.call_id = "abcDEF123";
  all.push_back({{system, question, answer, more}, some_tools()});
  all.push_back({{question}, some_tools()});
  all.push_back({{question, call, result}, some_tools()});
  all.push_back({{system, question, call, result, answer, more}, some_tools()});
  return all;
}

// As the authors of GLM tell calls to their templates: metadata and observations.
Dict glm_message(const ChatTurn& turn) {
  Dict message;
  message.set("role", turn.role == "tool" ? "observation" : turn.role);
  message.set("content", turn.content);
  if (turn.calls.empty()) return message;
  message.set("metadata", turn.calls[0].name);
  message.set("content", jinja::to_json(turn.calls[0].arguments));
  return message;
}

Dict message_of(const ChatTurn& turn) {
  Dict message;
  message.set("role", turn.role);
  message.set("content", turn.content);
  if (turn.role == "tool") {
    message.set("tool_call_id", turn.call_id);
    message.set("name", "get_weather");
  }
  List calls;
  for (const ToolCall& call : turn.calls) {
    Dict function;
    function.set("name", call.name);
    function.set("arguments", call.arguments);
    Dict entry;
    entry.set("id", call.id);
    entry.set("type", "function");
    entry.set("function", Value(std::move(function)));
    calls.push_back(Value(std::move(entry)));
  }
  if (!calls.empty()) message.set("tool_calls", Value(std::move(calls)));
  return message;
}

Value tools_value(const std::vector<Tool>& tools) {
  List list;
  for (const Tool& tool : tools) list.push_back(tool.whole);
  return Value(std::move(list));
}

Value today(const jinja::Arguments& arguments) {
  if (arguments.positional.empty() || arguments.positional[0].text() == nullptr) return Value();
  const std::string& format = *arguments.positional[0].text();
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  char text[256];
  if (format.size() > 64) return Value();
  return Value(std::string(text, std::strftime(text, sizeof text, format.c_str(), &parts)));
}

// The special tokens that a text holds by their ids, and the runs between them, each encoded as
// one. The conversations hold no such text, so all of them are the template's own.
std::vector<int32_t> ids_of(const std::string& text, const Tokenizer& tokenizer) {
  Prompt prompt(tokenizer);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    size_t length = std::min(kSpecialBytesMax, text.size() - at);
    while (length > 0 && !tokenizer.special(std::string_view(text).substr(at, length))) --length;
    if (length == 0) {
      ++at;
      continue;
    }
    prompt.text(std::string_view(text).substr(begin, at - begin));
    prompt.token(std::string_view(text).substr(at, length));
    at += length;
    begin = at;
  }
  return prompt.text(std::string_view(text).substr(begin)).take();
}

std::string excerpt(const std::vector<int32_t>& ids, size_t from, const Tokenizer& tokenizer) {
  if (from >= ids.size()) return "nothing";
  std::string bytes;
  for (size_t i = from; i < ids.size() && bytes.size() < 48; ++i) {
    bytes += tokenizer.is_special(ids[i]) ? "[token " + std::to_string(ids[i]) + "]"
                                          : tokenizer.bytes_of(ids[i], false);
  }
  std::string text = take_characters(bytes);
  for (char& c : text) c = static_cast<uint8_t>(c) < ' ' ? ' ' : c;
  return "\"" + text + "\"";
}

}  // namespace

struct TemplateJudge::Templates {
  std::string problem;  // not empty: there is no template to run
  std::unique_ptr<const jinja::Template> plain;
  std::unique_ptr<const jinja::Template> tools;  // null: plain
  Dict tokens;

  std::string render(const Conversation& conversation, bool glm, bool tools_in_message) const {
    const bool has_tools = !conversation.tools.empty();
    List messages;
    const bool adds_system = tools_in_message && conversation.turns[0].role != "system";
    if (adds_system) messages.push_back(Value(glm_message({"system", ""})));
    for (const ChatTurn& turn : conversation.turns) {
      messages.push_back(Value(glm ? glm_message(turn) : message_of(turn)));
    }
    const Value functions = has_tools ? tools_value(conversation.tools) : Value();
    if (tools_in_message) {
      Dict first = *messages[0].dict();
      first.set("tools", functions);
      messages[0] = Value(std::move(first));
    }
    Dict context = tokens;
    context.set("messages", Value(std::move(messages)));
    context.set("tools", tools_in_message ? Value() : functions);
    context.set("documents", Value());
    context.set("add_generation_prompt", true);
    const jinja::Template& used = has_tools && tools != nullptr ? *tools : *plain;
    std::string text = used.render(context, today);
    if (text.size() > kRenderedBytesMax) {
      throw Error(Code::kResourceExhausted,
                  "it writes more than " + std::to_string(kRenderedBytesMax) + " bytes");
    }
    return text;
  }

  // Tools reach a template by a variable, or, where it does not look at that, by the first message.
  std::string render(const Conversation& conversation, bool glm) const {
    std::string text = render(conversation, glm, false);
    if (!glm || conversation.tools.empty()) return text;
    return text == render({conversation.turns}, glm, false) ? render(conversation, glm, true)
                                                            : text;
  }
};

TemplateJudge::TemplateJudge(const ChatSettings& settings, const Tokenizer& tokenizer)
    : tokenizer_(tokenizer) {
  auto templates = std::make_unique<Templates>();
  try {
    templates->plain = std::make_unique<const jinja::Template>(settings.chat_template);
    if (!settings.tool_template.empty()) {
      templates->tools = std::make_unique<const jinja::Template>(settings.tool_template);
    }
  } catch (const Error& error) {
    templates->problem = error.what();
  }
  if (!settings.bos_token.empty()) templates->tokens.set("bos_token", settings.bos_token);
  if (!settings.eos_token.empty()) templates->tokens.set("eos_token", settings.eos_token);
  templates_ = std::move(templates);
}

TemplateJudge::~TemplateJudge() = default;

std::optional<std::string> TemplateJudge::difference(const ChatFormat& format) const {
  if (!templates_->problem.empty())
    return "the template cannot be compared: " + templates_->problem;
  const bool thoughts = !tokenizer_.special("<think>") && !tokenizer_.special("</think>");
  for (const Conversation& conversation : conversations(format.knows_tools(), thoughts)) {
    Outcome wanted;
    try {
      wanted.ids = ids_of(templates_->render(conversation, format.knows_metadata()), tokenizer_);
    } catch (const Error& error) {
      if (error.code() != Code::kInvalidArgument) {
        return std::string("the template cannot be compared: ") + error.what();
      }
      wanted.refused = true;
      wanted.reason = error.what();
    }
    Outcome found;
    try {
      found.ids = format.render(conversation);
    } catch (const Error& error) {
      found.refused = true;
      found.reason = error.what();
    }
    if (wanted.refused && found.refused) continue;
    if (wanted.refused)
      return "the template refuses a conversation (" + wanted.reason + ") that " + format.name() +
             " writes";
    if (found.refused)
      return std::string(format.name()) + " refuses a conversation (" + found.reason +
             ") that the template writes";
    if (wanted.ids == found.ids) continue;
    const auto at = static_cast<size_t>(
        std::mismatch(wanted.ids.begin(), wanted.ids.end(), found.ids.begin(), found.ids.end())
            .first -
        wanted.ids.begin());
    return "token " + std::to_string(at) + " of a prompt: the template has " +
           excerpt(wanted.ids, at, tokenizer_) + " where " + format.name() + " has " +
           excerpt(found.ids, at, tokenizer_);
  }
  return std::nullopt;
}

}  // namespace trireme
