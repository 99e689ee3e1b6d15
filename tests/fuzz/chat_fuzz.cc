// SPDX-License-Identifier: Apache-2.0
// Chat templates of checkpoints, tools of clients, and the calls that a model writes.
#include <algorithm>
#include <iterator>

#include "coordinator/tokenizer/chat_answer.h"
#include "coordinator/tokenizer/chat_tools.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "coordinator/tokenizer/jinja/template.h"
#include "coordinator/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/served.h"

namespace trireme::fuzz {
namespace {

void check_json(const jinja::Value& value) {
  std::string text;
  if (!accepts([&] { text = jinja::to_json(value); })) return;
  CHECK(!find_broken_utf8(text).has_value(), "JSON is UTF-8");
  CHECK(jinja::to_json(jinja::parse_json(text)) == text, "written again it is the same");
}

// The plain text and the calls of an answer that comes in pieces of `step` bytes, whole characters
// each; special tokens come alone.
std::string taken_apart(const ServedModel& model, std::string_view answer, size_t step) {
  static const std::vector<Tool> tools = read_tools(R"([{"name": "f"}, {"name": "g"}])");
  const auto reader = model.chat_format.answer_reader(tools);
  if (reader == nullptr) return "";
  std::string text, held;
  while (!answer.empty()) {
    const auto mark = static_cast<size_t>(answer[0]) - 1;
    if (mark < std::size(kAnswerTokens)) {
      text += reader->special(*model.tokenizer.special(kAnswerTokens[mark]));
      answer.remove_prefix(1);
      continue;
    }
    const size_t end = std::min(answer.find_first_of("\1\2\3\4\5"), step);
    held += answer.substr(0, end);
    answer.remove_prefix(std::min(end, answer.size()));
    text += reader->push(take_characters(held));
  }
  text += reader->finish();
  for (const ToolCall& call : reader->calls()) {
    CHECK(is_tool_name(call.name), "the name of a call");
    text += "\n" + call.name + jinja::to_json(call.arguments);
  }
  return text;
}

}  // namespace

// A template, then the JSON of what it may name.
void fuzz_chat_template(std::string_view input) {
  const auto [source, json] = cut(input);
  jinja::Dict context;
  (void)accepts([&, json = json] {
    const jinja::Value value = jinja::parse_json(json);
    if (value.dict() != nullptr) context = *value.dict();
  });
  (void)accepts([&, source = source] {
    const jinja::Template parsed(source);
    const std::string text =
        parsed.render(context, [](const jinja::Arguments&) { return jinja::Value("01 Jan 2026"); });
    CHECK(!find_broken_utf8(text).has_value(), "a prompt is UTF-8");
  });
}

void fuzz_tools_json(std::string_view input) {
  (void)accepts([&] { check_json(jinja::parse_json(input)); });
  (void)accepts([&] {
    for (const Tool& tool : read_tools(input)) {
      CHECK(is_tool_name(tool.name), "the name of a tool");
      check_json(tool.whole);
    }
  });
  if (find_broken_utf8(input).has_value()) return;
  if (const auto call = read_python_call(input)) {
    CHECK(call->dict() != nullptr, "arguments are a dict");
    check_json(*call);
  }
}

// The first byte chooses the format.
void fuzz_answer(std::string_view input) {
  if (input.empty() || find_broken_utf8(input.substr(1)).has_value()) return;
  const ServedModel model = every_format().model(static_cast<uint8_t>(input[0]));
  const std::string whole = taken_apart(model, input.substr(1), input.size());
  CHECK(taken_apart(model, input.substr(1), 1) == whole, "the pieces make no difference");
}

}  // namespace trireme::fuzz
