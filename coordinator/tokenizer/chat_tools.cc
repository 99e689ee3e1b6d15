// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_tools.h"

#include <algorithm>

#include "coordinator/tokenizer/jinja/json.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

using jinja::Dict;
using jinja::List;
using jinja::Value;

constexpr size_t kToolsBytesMax = size_t{256} << 10;
constexpr size_t kToolsMax = 128;
constexpr size_t kToolNameBytesMax = 64;

[[noreturn]] void refuse(const std::string& place, const std::string& found,
                         const std::string& allowed) {
  throw Error(Code::kInvalidArgument, place + ": found " + found + ", allowed: " + allowed);
}

Value parse_at(const std::string& place, std::string_view text) {
  if (const auto offset = find_broken_utf8(text)) {
    refuse(place, "a byte that is not UTF-8 at offset " + std::to_string(*offset), "valid UTF-8");
  }
  try {
    return jinja::parse_json(text);
  } catch (const Error& error) {
    refuse(place, error.what(), "JSON");
  }
}

const Dict& object_at(const std::string& place, const Value& value) {
  if (value.dict() == nullptr) refuse(place, std::string("a ") + value.type_name(), "an object");
  return *value.dict();
}

Tool read_tool(const std::string& place, const Value& value) {
  const Dict& outer = object_at(place, value);
  const Value* const type = outer.find("type");
  const Value* const inner = outer.find("function");
  Tool tool;
  std::string at = place;
  if (inner != nullptr) {
    if (type != nullptr && !(*type == Value("function"))) {
      refuse(place + ".type", jinja::to_repr(*type), "\"function\"");
    }
    at += ".function";
    tool.function = *inner;
    tool.whole = value;
  } else {
    tool.function = value;
    Dict whole;
    whole.set("type", "function");
    whole.set("function", value);
    tool.whole = Value(std::move(whole));
  }
  const Dict& function = object_at(at, tool.function);
  const Value* const name = function.find("name");
  if (name == nullptr || name->text() == nullptr) {
    refuse(at + ".name", name == nullptr ? "nothing" : std::string("a ") + name->type_name(),
           "the name of the function");
  }
  if (!is_tool_name(*name->text())) {
    refuse(at + ".name", "a name of " + std::to_string(name->text()->size()) + " bytes",
           "1 to 64 bytes without spaces and control characters");
  }
  tool.name = *name->text();
  if (const Value* const parameters = function.find("parameters")) {
    // ChatGLM3's own examples also have a list of parameters there.
    if (parameters->list() == nullptr) object_at(at + ".parameters", *parameters);
  }
  return tool;
}

}  // namespace

bool is_tool_name(std::string_view name) {
  if (name.empty() || name.size() > kToolNameBytesMax) return false;
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return static_cast<uint8_t>(c) > ' ' && c != 0x7F; });
}

std::vector<Tool> read_tools(std::string_view tools_json) {
  if (tools_json.size() > kToolsBytesMax) {
    refuse("tools_json", std::to_string(tools_json.size()) + " bytes",
           "at most " + std::to_string(kToolsBytesMax));
  }
  const Value tools = parse_at("tools_json", tools_json);
  if (tools.list() == nullptr) {
    refuse("tools_json", std::string("a ") + tools.type_name(), "an array of functions");
  }
  if (tools.list()->empty() || tools.list()->size() > kToolsMax) {
    refuse("tools_json", std::to_string(tools.list()->size()) + " tools",
           "1 to " + std::to_string(kToolsMax) + "; leave the field out for none");
  }
  std::vector<Tool> result;
  for (size_t i = 0; i < tools.list()->size(); ++i) {
    const std::string place = "tools_json[" + std::to_string(i) + "]";
    result.push_back(read_tool(place, (*tools.list())[i]));
    const auto twin = std::find_if(result.begin(), result.end(), [&](const Tool& other) {
      return other.name == result.back().name;
    });
    if (twin != result.end() - 1) {
      refuse(place, "the name of tools_json[" + std::to_string(twin - result.begin()) + "]",
             "a name of its own");
    }
  }
  return result;
}

Value read_arguments(const std::string& place, std::string_view arguments_json) {
  const Value arguments = parse_at(place, arguments_json);
  object_at(place, arguments);
  return arguments;
}

std::optional<ToolCall> read_json_call(const Value& value) {
  if (value.dict() == nullptr) return std::nullopt;
  const Value* const name = value.dict()->find("name");
  const Value* arguments = value.dict()->find("arguments");
  if (arguments == nullptr) arguments = value.dict()->find("parameters");
  if (name == nullptr || name->text() == nullptr || !is_tool_name(*name->text())) {
    return std::nullopt;
  }
  if (arguments == nullptr) return ToolCall{*name->text(), Value(Dict())};
  if (arguments->dict() != nullptr) return ToolCall{*name->text(), *arguments};
  if (arguments->text() == nullptr) return std::nullopt;
  try {
    const Value inner = jinja::parse_json(*arguments->text());
    if (inner.dict() != nullptr) return ToolCall{*name->text(), inner};
  } catch (const Error&) {
    // A model wrote it: what is no call stays text.
  }
  return std::nullopt;
}

std::optional<ToolCall> read_json_call(std::string_view json) {
  try {
    return read_json_call(jinja::parse_json(json));
  } catch (const Error&) {
    return std::nullopt;  // likewise
  }
}

}  // namespace trireme
