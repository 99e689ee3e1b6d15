// SPDX-License-Identifier: Apache-2.0
// Tools that a client offers to a model, and calls of them, as both write them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/jinja/value.h"

namespace trireme {

struct Tool {
  std::string name;
  jinja::Value function;  // {"name", "description", "parameters", ...}
  jinja::Value whole;     // {"type": "function", "function": {...}}
};

struct ToolCall {
  std::string name;
  jinja::Value arguments;  // a dict
  std::string id = {};     // empty: none
};

// tools_json: an array of functions, bare or each in {"type": "function", "function": {...}}.
// Throws kInvalidArgument, the message begins with the place: tools_json[2].function.name.
std::vector<Tool> read_tools(std::string_view tools_json);

// The arguments of a call, an object. place: for messages. Throws kInvalidArgument.
jinja::Value read_arguments(const std::string& place, std::string_view arguments_json);

// A name that a tool may have: 1 to 64 bytes of UTF-8 without spaces and control characters.
bool is_tool_name(std::string_view name);

// {"name": ..., "arguments" or "parameters": {...}}, or arguments as a string that holds the
// object; nullopt for anything else.
std::optional<ToolCall> read_json_call(const jinja::Value& value);
std::optional<ToolCall> read_json_call(std::string_view json);

// ChatGLM3 writes a call as Python: a fenced tool_call(key=literal, ...). Only literals are read;
// nothing is ever evaluated. nullopt for anything else.
std::optional<jinja::Value> read_python_call(std::string_view fenced);
// The same, written: the body of an assistant's turn.
std::string write_python_call(const jinja::Value& arguments);

}  // namespace trireme
