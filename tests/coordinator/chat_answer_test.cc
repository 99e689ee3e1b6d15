// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_answer.h"

#include <gtest/gtest.h>

#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/json.h"

namespace trireme {
namespace {

constexpr int32_t kMark = 7;  // of the special token, written as \x01 in the texts below

struct Read {
  std::string text;
  std::vector<std::string> calls;  // name + arguments
  bool operator==(const Read&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Read& read) {
  out << '"' << read.text << '"';
  for (const std::string& call : read.calls) out << " <" << call << ">";
  return out;
}

// The answer, fed in pieces of `step` bytes; what was given out before the end in `early`.
Read read_answer(AnswerReader& reader, std::string_view answer, size_t step,
                 std::string* early = nullptr) {
  Read read;
  for (size_t at = 0; at < answer.size();) {
    if (answer[at] == '\x01') {
      read.text += reader.special(kMark);
      ++at;
      continue;
    }
    const size_t size = std::min(step, std::min(answer.find('\x01', at), answer.size()) - at);
    read.text += reader.push(answer.substr(at, size));
    at += size;
  }
  if (early != nullptr) *early = read.text;
  read.text += reader.finish();
  for (const ToolCall& call : reader.calls()) {
    read.calls.push_back(call.name + jinja::to_json(call.arguments));
  }
  return read;
}

using Make = std::function<std::unique_ptr<AnswerReader>()>;

void expect_read(const Make& make, std::string_view answer, const Read& expected) {
  for (const size_t step : {1, 2, 3, 5, 1000}) {
    EXPECT_EQ(read_answer(*make(), answer, step), expected) << answer << " in pieces of " << step;
  }
}

std::unique_ptr<AnswerReader> chatglm3(bool tools = true) {
  GlmAnswerStyle style;
  style.assistant_id = kMark;
  style.read_arguments = read_python_call;
  style.tool_names = {"get_weather", "查天气"};
  if (tools) style.call_begin = "```";
  return make_glm_answer(std::move(style));
}

TEST(ChatAnswer, ChatGlm3TellsCallsFromText) {
  const Make make = [] { return chatglm3(); };
  const std::string call = "```python\ntool_call(city='北京', days=3)\n```";
  const std::string arguments = R"({"city": "北京", "days": 3})";
  expect_read(make, "\n 你好\n再见 \n", {"你好\n再见", {}});
  expect_read(make, "get_weather\n" + call, {"", {"get_weather" + arguments}});
  expect_read(make, " get_weather \n " + call, {"", {"get_weather" + arguments}});
  expect_read(make, "查天气\n" + call, {"", {"查天气" + arguments}});
  expect_read(make,
              "\n我查一下。\x01"
              "get_weather\n" +
                  call + "\x01\n好",
              {"我查一下。\n好", {"get_weather" + arguments}});
  // What is no call is text, whole.
  for (const char* text : {"get_weather", "get_weather\n```python\ntool_call(city=open('x'))\n```",
                           "get_weather\n```python\ntool_call(1)\n```", "get_weather\nsunny",
                           "get_weather\n```python\ntool_call(a=1", "Hello there\n```x```",
                           "两个词 和\n```python\ntool_call()\n```"}) {
    expect_read(make, text, {text, {}});
  }
  expect_read([] { return chatglm3(false); }, "get_weather\n" + call + "\n",
              {"get_weather\n" + call, {}});
  expect_read(make, "", {"", {}});
}

TEST(ChatAnswer, OnlyWhatMayBeACallIsHeldBack) {
  std::string early;
  read_answer(*chatglm3(), "Hello there", 1, &early);
  EXPECT_EQ(early, "Hello there");
  read_answer(*chatglm3(), "你好", 3, &early);
  EXPECT_EQ(early, "你好");
  read_answer(*chatglm3(), "get_weather\nsunny", 1, &early);
  EXPECT_EQ(early, "get_weather\nsunny");
  const auto marked = [] {
    return make_marked_answer({.begin = "<tool_call>", .end = "</tool_call>"});
  };
  read_answer(*marked(), "a < b <tool_calm> c", 1, &early);
  EXPECT_EQ(early, "a < b <tool_calm> c");
  read_answer(*marked(), "a <tool_cal", 1, &early);
  EXPECT_EQ(early, "a");
}

TEST(ChatAnswer, OnlyLiteralsAreReadAsArguments) {
  const auto read = [](const std::string& arguments) -> std::string {
    const auto value = read_python_call("```python\ntool_call(" + arguments + ")\n```");
    return value.has_value() ? jinja::to_json(*value) : "none";
  };
  EXPECT_EQ(read(""), "{}");
  EXPECT_EQ(read("a=1, b=-2.5, c=1e3,"), R"({"a": 1, "b": -2.5, "c": 1000.0})");
  EXPECT_EQ(read("a=True, b=False, c=None"), R"({"a": true, "b": false, "c": null})");
  EXPECT_EQ(read("range=(0, 100), x=(1), y=(1,), z=()"),
            R"({"range": [0, 100], "x": 1, "y": [1], "z": []})");
  EXPECT_EQ(read(R"(a="it's", b='\n\t\\\'\x41\u4f60\d', 城市='北京')"),
            R"({"a": "it's", "b": "\n\t\\'A你\\d", "城市": "北京"})");
  EXPECT_EQ(read("a={'k': [1, {'x': 'y'}]}\n, b = [ ]"),
            R"({"a": {"k": [1, {"x": "y"}]}, "b": []})");
  for (const char* bad : {"1",
                          "a",
                          "a=",
                          "a=b",
                          "a=f()",
                          "a=1 b=2",
                          "a=1, a=2",
                          "a=1+1",
                          "a='x' 'y'",
                          "a='x",
                          "a=[1",
                          "a=__import__('os')",
                          "a=007",
                          "a=1_000",
                          "a=0x10",
                          "a=inf",
                          "a=nan",
                          "1a=1",
                          "a={1: 2}",
                          "a='\\x4'",
                          "a=--1",
                          "a=99999999999999999999x",
                          "a=1)\nopen('x'",
                          "**{'a': 1}",
                          "a=b'x'"}) {
    EXPECT_EQ(read(bad), "none") << bad;
  }
  EXPECT_EQ(read("a=" + std::string(100000, '[')), "none");
  EXPECT_FALSE(read_python_call("tool_call(a=1)").has_value());
  EXPECT_FALSE(read_python_call("```tool_call(a=1)```").has_value());
  EXPECT_FALSE(read_python_call("``````").has_value());
  // What is written is read back.
  const auto value =
      jinja::parse_json(R"({"a": ["it's \"x\"", true, null, 1.5, {"b": "\u0001\n"}]})");
  EXPECT_EQ(read_python_call(write_python_call(value)), value);
}

std::vector<ToolCall> read_one(std::string_view text) {
  auto call = read_json_call(strip(text));
  return call.has_value() ? std::vector<ToolCall>{*std::move(call)} : std::vector<ToolCall>{};
}

TEST(ChatAnswer, MarkedCallsLeaveTheText) {
  const Make make = [] {
    return make_marked_answer({.begin = "<tool_call>", .end = "</tool_call>", .read = read_one});
  };
  const std::string call =
      "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"<tool\"}}\n</tool_call>";
  const std::string read = R"(f{"a": "<tool"})";
  expect_read(make, "plain \n", {"plain \n", {}});
  expect_read(make, call, {"", {read}});
  expect_read(make, "Let me see.\n\n" + call + "\n" + call + "\n", {"Let me see.", {read, read}});
  expect_read(make, call + "\nDone <tool", {"Done <tool", {read}});
  // A string that holds the arguments; an end that the model left out.
  expect_read(make, R"(<tool_call>{"name": "f", "arguments": "{\"a\": 1}"})",
              {"", {R"(f{"a": 1})"}});
  for (const char* text :
       {"x <tool_call>no JSON</tool_call> y", "<tool_call>{\"name\": 1}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>\n",
        "<tool_call>{\"name\": \"f\"", "<tool_call>", "<tool_call"}) {
    expect_read(make, text, {text, {}});
  }
}

TEST(ChatAnswer, AWholeAnswerMayBeACall) {
  const Make make = [] {
    return make_marked_answer(
        {.begin = "<|python_tag|>", .begin_id = kMark, .brace_begins = true, .read = read_one});
  };
  expect_read(make, R"({"name": "f", "parameters": {"a": 1}})", {"", {R"(f{"a": 1})"}});
  expect_read(make,
              "\x01"
              R"({"name": "f", "parameters": {}})",
              {"", {"f{}"}});
  expect_read(make, "{not a call}", {"{not a call}", {}});
  expect_read(make, " Say {\"name\": \"f\"}", {" Say {\"name\": \"f\"}", {}});
  expect_read(make, "a \x01print(1)", {"a <|python_tag|>print(1)", {}});
}

TEST(ChatTools, JsonIsWrittenAsPythonWritesIt) {
  const auto value = jinja::parse_json(
      R"({"b": [1, -2.0, 1e100, 0.1, 12345678901234567890], "a": {"x": [], "y": {}}, )"
      R"("é": "\u00e9\"\\\u0007 🚀", "n": null})");
  EXPECT_EQ(jinja::to_json(value),
            R"({"b": [1, -2.0, 1e+100, 0.1, 1.2345678901234567e+19], "a": {"x": [], "y": {}}, )"
            R"("é": "é\"\\\u0007 🚀", "n": null})");
  EXPECT_EQ(
      jinja::to_json(value, {.indent = 1, .ascii = true, .sort_keys = true}),
      "{\n \"a\": {\n  \"x\": [],\n  \"y\": {}\n },\n \"b\": [\n  1,\n  -2.0,\n  1e+100,\n  0.1,\n"
      "  1.2345678901234567e+19\n ],\n \"n\": null,\n \"\\u00e9\": \"\\u00e9\\\"\\\\\\u0007 "
      "\\ud83d\\ude80\"\n}");
}

}  // namespace
}  // namespace trireme
