// SPDX-License-Identifier: Apache-2.0
// Attributes, elements and methods of values.
#include <algorithm>
#include <map>

#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/builtins.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

// str.strip(chars): any of these characters.
std::string_view strip_characters(std::string_view text, const Value& set, bool left, bool right) {
  if (set.is_none()) {
    if (left) text = strip_left(text);
    return right ? strip_right(text) : text;
  }
  const std::string all = text_of(set, "strip");
  const std::vector<std::string_view> wanted = characters(all);
  const auto any = [&](bool front) {
    return std::find_if(wanted.begin(), wanted.end(), [&](std::string_view character) {
      return front ? text.starts_with(character) : text.ends_with(character);
    });
  };
  for (auto found = any(true); left && found != wanted.end(); found = any(true))
    text.remove_prefix(found->size());
  for (auto found = any(false); right && found != wanted.end(); found = any(false))
    text.remove_suffix(found->size());
  return text;
}

Value split(const std::string& text, const Arguments& arguments, bool from_right, Work& work) {
  const Value separator = argument(arguments, 0, "sep");
  int64_t most = integer_argument(arguments, 1, "maxsplit", -1);
  if (most < 0) most = INT64_MAX;
  List parts;
  if (separator.is_none()) {
    if (from_right && most != INT64_MAX) fail_unknown("rsplit at blanks");
    std::string_view rest = strip_left(text);
    while (!rest.empty()) {
      size_t end = 0;
      while (end < rest.size() && most > 0 &&
             strip_left(rest.substr(end)).size() == rest.size() - end)
        ++end;
      if (most == 0) end = strip_right(rest).size();
      parts.push_back(Value(rest.substr(0, end)));
      rest = strip_left(rest.substr(end));
      --most;
      work.spend(1);
    }
    return Value(std::move(parts));
  }
  const std::string mark = text_of(separator, "split");
  if (mark.empty()) fail_value("split at an empty text");
  std::string_view rest = text;
  while (most-- > 0) {
    const size_t found = from_right ? rest.rfind(mark) : rest.find(mark);
    if (found == rest.npos) break;
    work.spend(1);
    const std::string_view behind = rest.substr(found + mark.size());
    parts.push_back(Value(from_right ? behind : rest.substr(0, found)));
    rest = from_right ? rest.substr(0, found) : behind;
  }
  parts.push_back(Value(rest));
  if (from_right) std::reverse(parts.begin(), parts.end());
  return Value(std::move(parts));
}

Value split_lines(const std::string& text, const Arguments& arguments, Work& work) {
  if (argument(arguments, 0, "keepends").truthy()) fail_unknown("splitlines(keepends)");
  List lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(Value(std::string_view(text).substr(at, end - at)));
    at = end + 1;
    work.spend(1);
  }
  return Value(std::move(lines));
}

Value replaced(const std::string& text, const Arguments& arguments, Work& work) {
  const std::string from = text_of(argument(arguments, 0, "old"), "replace");
  const std::string to = text_of(argument(arguments, 1, "new"), "replace");
  int64_t most = integer_argument(arguments, 2, "count", -1);
  std::string out;
  if (from.empty()) {  // stands around every character
    for (const std::string_view character : characters(text)) {
      work.spend_bytes(to.size());
      if (most != 0) out += to;
      if (most > 0) --most;
      out += character;
    }
    return Value(most == 0 ? out : out + to);
  }
  size_t at = 0;
  for (size_t found = text.find(from); found != text.npos && most != 0;
       found = text.find(from, at)) {
    out += text.substr(at, found - at) + to;
    at = found + from.size();
    --most;
    work.spend_bytes(to.size());
  }
  return Value(out + text.substr(at));
}

// startswith and endswith take one text or several.
Value begins_or_ends(const std::string& text, const Arguments& arguments, bool begins) {
  const Value wanted = argument(arguments, 0);
  const List all = wanted.list() != nullptr ? *wanted.list() : List{wanted};
  return Value(std::any_of(all.begin(), all.end(), [&](const Value& one) {
    const std::string part = text_of(one, "startswith");
    return begins ? text.starts_with(part) : text.ends_with(part);
  }));
}

Value find_text(const std::string& text, const Arguments& arguments, bool from_right) {
  const std::string wanted = text_of(argument(arguments, 0), "find");
  const size_t found = from_right ? text.rfind(wanted) : text.find(wanted);
  if (found == text.npos) return -1;
  return static_cast<int64_t>(characters(std::string_view(text).substr(0, found)).size());
}

Value count_text(const std::string& text, const Arguments& arguments) {
  const std::string wanted = text_of(argument(arguments, 0), "count");
  if (wanted.empty()) fail_unknown("count of an empty text");
  int64_t count = 0;
  for (size_t at = text.find(wanted); at != text.npos; at = text.find(wanted, at + wanted.size()))
    ++count;
  return count;
}

bool all_of_text(const std::string& text, bool (*is)(char)) {
  for (const char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) fail_unknown("a test of letters outside of ASCII");
  }
  return !text.empty() && std::all_of(text.begin(), text.end(), is);
}

using TextMethod = Value (*)(const std::string&, const Arguments&, Work&);

const std::map<std::string_view, TextMethod>& text_methods() {
  using S = const std::string&;
  using A = const Arguments&;
  static const std::map<std::string_view, TextMethod> methods = {
      {"strip",
       [](S s, A a, Work&) { return Value(strip_characters(s, argument(a, 0), true, true)); }},
      {"lstrip",
       [](S s, A a, Work&) { return Value(strip_characters(s, argument(a, 0), true, false)); }},
      {"rstrip",
       [](S s, A a, Work&) { return Value(strip_characters(s, argument(a, 0), false, true)); }},
      {"startswith", [](S s, A a, Work&) { return begins_or_ends(s, a, true); }},
      {"endswith", [](S s, A a, Work&) { return begins_or_ends(s, a, false); }},
      {"split", [](S s, A a, Work& w) { return split(s, a, false, w); }},
      {"rsplit", [](S s, A a, Work& w) { return split(s, a, true, w); }},
      {"splitlines", split_lines},
      {"replace", replaced},
      {"find", [](S s, A a, Work&) { return find_text(s, a, false); }},
      {"rfind", [](S s, A a, Work&) { return find_text(s, a, true); }},
      {"count", [](S s, A a, Work&) { return count_text(s, a); }},
      {"isdigit",
       [](S s, A, Work&) {
         return Value(all_of_text(s, [](char c) { return c >= '0' && c <= '9'; }));
       }},
      {"upper", [](S s, A a, Work& w) { return apply_filter("upper", Value(s), a, w); }},
      {"lower", [](S s, A a, Work& w) { return apply_filter("lower", Value(s), a, w); }},
      {"title", [](S s, A a, Work& w) { return apply_filter("title", Value(s), a, w); }},
      {"capitalize", [](S s, A a, Work& w) { return apply_filter("capitalize", Value(s), a, w); }},
      {"removeprefix",
       [](S s, A a, Work&) {
         const std::string part = text_of(argument(a, 0), "removeprefix");
         return Value(s.starts_with(part) ? s.substr(part.size()) : s);
       }},
      {"removesuffix",
       [](S s, A a, Work&) {
         const std::string part = text_of(argument(a, 0), "removesuffix");
         return Value(s.ends_with(part) ? s.substr(0, s.size() - part.size()) : s);
       }},
      {"join",
       [](S s, A a, Work& w) {
         return apply_filter("join", argument(a, 0), {{Value(s)}, {}}, w);
       }},
  };
  return methods;
}

Value dict_method(const Value& object, const std::string& name, Work& work) {
  if (name == "get") {
    return Value(Function([object](const Arguments& arguments) {
      const Value key = argument(arguments, 0);
      const Value* const found = key.text() == nullptr ? nullptr : object.dict()->find(*key.text());
      return found == nullptr ? argument(arguments, 1, "default") : *found;
    }));
  }
  if (name != "items" && name != "keys" && name != "values") return Value(Value::Undefined{name});
  return Value(Function([object, name, &work](const Arguments&) {
    work.spend(object.weight());
    List list;
    for (const Member& member : object.dict()->members()) {
      if (name == "items") list.push_back(Value(List{Value(member.first), member.second}));
      if (name == "keys") list.push_back(Value(member.first));
      if (name == "values") list.push_back(member.second);
    }
    return Value(std::move(list));
  }));
}

Value list_method(const Value& object, const std::string& name, Work& work) {
  if (name != "index" && name != "count") return Value(Value::Undefined{name});
  return Value(Function([object, name, &work](const Arguments& arguments) -> Value {
    work.spend(object.weight());
    const List& list = *object.list();
    const Value wanted = argument(arguments, 0);
    if (name == "count") return static_cast<int64_t>(std::count(list.begin(), list.end(), wanted));
    const auto found = std::find(list.begin(), list.end(), wanted);
    if (found == list.end()) fail_value("index of what is not in the list");
    return static_cast<int64_t>(found - list.begin());
  }));
}

[[noreturn]] void fail_undefined(const Value& value) {
  fail_value("'" + value.undefined()->name + "' is undefined");
}

}  // namespace

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> all;
  for (size_t at = 0; at < text.size();) {
    const size_t length = first_character(text.substr(at)).length;
    all.push_back(text.substr(at, length));
    at += length;
  }
  return all;
}

Value attribute(const Value& object, const std::string& name, Work& work) {
  work.spend(object.dict() == nullptr ? 1 : 1 + object.dict()->size());
  if (object.is_undefined()) fail_undefined(object);
  if (object.space() != nullptr) {
    work.spend(object.space()->members->size());
    const Value* const found = object.space()->members->find(name);
    return found == nullptr ? Value(Value::Undefined{name}) : *found;
  }
  if (object.dict() != nullptr) {
    Value method = dict_method(object, name, work);
    if (!method.is_undefined()) return method;
    const Value* const found = object.dict()->find(name);
    return found == nullptr ? method : *found;
  }
  if (object.list() != nullptr) return list_method(object, name, work);
  if (object.text() == nullptr) return Value(Value::Undefined{name});
  const auto found = text_methods().find(name);
  if (found == text_methods().end()) {
    // A method of Python's that is not here must not look like a missing member.
    static constexpr std::string_view kOthers[] = {
        "casefold", "center",    "encode",      "expandtabs", "format",    "format_map",
        "index",    "isalnum",   "isalpha",     "isascii",    "isdecimal", "isidentifier",
        "islower",  "isnumeric", "isprintable", "isspace",    "istitle",   "isupper",
        "ljust",    "maketrans", "partition",   "rindex",     "rjust",     "rpartition",
        "swapcase", "translate", "zfill"};
    if (std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers)) {
      fail_unknown("the method '" + name + "' of texts");
    }
    return Value(Value::Undefined{name});
  }
  return Value(
      Function([text = *object.text(), method = found->second, &work](const Arguments& arguments) {
        work.spend_bytes(text.size());
        return method(text, arguments, work);
      }));
}

Value item(const Value& object, const Value& key, Work& work) {
  work.spend(object.dict() == nullptr ? 1 : 1 + object.dict()->size());
  if (object.is_undefined()) fail_undefined(object);
  if (object.space() != nullptr && key.text() != nullptr)
    return attribute(object, *key.text(), work);
  if (object.dict() != nullptr && key.text() != nullptr) {
    const Value* const found = object.dict()->find(*key.text());
    return found == nullptr ? attribute(object, *key.text(), work) : *found;
  }
  const auto index = key.as_integer();
  if (!index)
    return key.text() == nullptr ? Value(Value::Undefined{to_text(key)})
                                 : attribute(object, *key.text(), work);
  const auto at = [&](size_t size) -> std::optional<size_t> {
    const int64_t from_front = *index < 0 ? *index + static_cast<int64_t>(size) : *index;
    if (from_front < 0 || from_front >= static_cast<int64_t>(size)) return std::nullopt;
    return static_cast<size_t>(from_front);
  };
  const Value missing(Value::Undefined{std::to_string(*index)});
  if (object.list() != nullptr) {
    const auto position = at(object.list()->size());
    return position ? (*object.list())[*position] : missing;
  }
  if (object.text() == nullptr) return missing;
  work.spend_bytes(object.text()->size());
  const auto all = characters(*object.text());
  const auto position = at(all.size());
  return position ? Value(all[*position]) : missing;
}

Value slice(const Value& object, const Value& start, const Value& stop, const Value& step,
            Work& work) {
  if (object.is_undefined()) fail_undefined(object);
  const bool is_text = object.text() != nullptr;
  if (!is_text && object.list() == nullptr)
    fail_value(std::string("a slice of a ") + object.type_name());
  const List all = iterate(object, work);
  const auto size = static_cast<int64_t>(all.size());
  const int64_t stride = step.is_none() ? 1 : step.as_integer().value_or(0);
  if (stride == 0) fail_value("a slice whose step is no number or 0");
  const auto bound = [&](const Value& value, int64_t otherwise) {
    if (value.is_none()) return otherwise;
    if (!value.as_integer()) fail_value("a slice whose bound is no number");
    const int64_t at = *value.as_integer() < 0 ? *value.as_integer() + size : *value.as_integer();
    return std::clamp<int64_t>(at, stride < 0 ? -1 : 0, stride < 0 ? size - 1 : size);
  };
  const int64_t begin = bound(start, stride < 0 ? size - 1 : 0);
  const int64_t end = bound(stop, stride < 0 ? -1 : size);
  List part;
  std::string text;
  const int64_t limited = std::clamp<int64_t>(stride, -size - 1, size + 1);
  for (int64_t at = begin; stride < 0 ? at > end : at < end; at += limited) {
    if (is_text) {
      text += *all[static_cast<size_t>(at)].text();
    } else {
      part.push_back(all[static_cast<size_t>(at)]);
    }
  }
  return is_text ? Value(std::move(text)) : Value(std::move(part));
}

List iterate(const Value& value, Work& work) {
  if (value.list() != nullptr) {
    work.spend(value.weight());
    return *value.list();
  }
  List list;
  if (value.is_undefined()) return list;
  if (value.dict() != nullptr) {
    for (const Member& member : value.dict()->members()) list.push_back(Value(member.first));
  } else if (value.text() != nullptr) {
    for (const std::string_view character : characters(*value.text()))
      list.push_back(Value(character));
  } else {
    fail_value(std::string("a ") + value.type_name() + " cannot be iterated");
  }
  work.spend(1 + list.size());
  return list;
}

bool contains(const Value& container, const Value& value) {
  if (container.text() != nullptr)
    return container.text()->find(text_of(value, "in")) != std::string::npos;
  if (container.dict() != nullptr)
    return value.text() != nullptr && container.dict()->find(*value.text()) != nullptr;
  if (container.is_undefined()) return false;
  if (container.list() == nullptr) fail_value(std::string("'in' a ") + container.type_name());
  return std::find(container.list()->begin(), container.list()->end(), value) !=
         container.list()->end();
}

bool less(const Value& a, const Value& b) {
  if (a.as_integer() && b.as_integer()) return *a.as_integer() < *b.as_integer();
  if (a.as_number() && b.as_number()) return *a.as_number() < *b.as_number();
  // UTF-8 sorts as its characters do.
  if (a.text() != nullptr && b.text() != nullptr) return *a.text() < *b.text();
  fail_value(std::string("a ") + a.type_name() + " and a " + b.type_name() + " have no order");
}

}  // namespace trireme::jinja
