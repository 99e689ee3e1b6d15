// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/jinja/builtins.h"
#include "coordinator/tokenizer/jinja/json.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

using Filter = Value (*)(const Value&, const Arguments&, Work&);

// Upper and lower case of ASCII; other letters would need Unicode's tables.
std::string cased(const Value& value, bool up) {
  std::string text = to_text(value);
  for (char& c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) fail_unknown("case of letters outside of ASCII");
    if (up ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z') c = static_cast<char>(c ^ 32);
  }
  return text;
}

std::string title_cased(const Value& value, bool each_word) {
  std::string text = cased(value, false);
  bool begins = true;
  for (char& c : text) {
    const bool letter = c >= 'a' && c <= 'z';
    if (begins && letter) c = static_cast<char>(c - 32);
    begins = each_word && !letter && c != '\'';
  }
  if (!each_word && !text.empty()) text[0] = cased(Value(text.substr(0, 1)), true)[0];
  return text;
}

Value length(const Value& value, const Arguments&, Work& work) {
  if (value.text() != nullptr) work.spend_bytes(value.text()->size());
  if (value.text() != nullptr) return static_cast<int64_t>(characters(*value.text()).size());
  if (value.list() != nullptr) return static_cast<int64_t>(value.list()->size());
  if (value.dict() != nullptr) return static_cast<int64_t>(value.dict()->size());
  if (value.is_undefined()) return 0;
  fail_value(std::string("the length of a ") + value.type_name());
}

// "a.b" goes two levels down; a number counts elements.
Value attribute_path(const Value& value, const Value& path, Work& work) {
  if (path.text() == nullptr) return item(value, path, work);
  Value now = value;
  size_t at = 0;
  while (at <= path.text()->size()) {
    const size_t end = std::min(path.text()->find('.', at), path.text()->size());
    const std::string part = path.text()->substr(at, end - at);
    int64_t index = 0;
    const bool number =
        !part.empty() && std::from_chars(part.data(), part.data() + part.size(), index).ptr ==
                             part.data() + part.size();
    now = item(now, number ? Value(index) : Value(part), work);
    at = end + 1;
  }
  return now;
}

Arguments behind(const Arguments& arguments, size_t count) {
  Arguments rest;
  for (size_t i = count; i < arguments.positional.size(); ++i)
    rest.positional.push_back(arguments.positional[i]);
  return rest;
}

Value map(const Value& value, const Arguments& arguments, Work& work) {
  const Value path = argument(arguments, SIZE_MAX, "attribute");
  const Value otherwise = argument(arguments, SIZE_MAX, "default");
  List out;
  if (!value.truthy()) return Value(std::move(out));  // also none, which could not be iterated
  for (const Value& one : iterate(value, work)) {
    if (path.is_none()) {
      out.push_back(
          apply_filter(text_of(argument(arguments, 0), "map"), one, behind(arguments, 1), work));
    } else {
      Value member = attribute_path(one, path, work);
      out.push_back(member.is_undefined() && !otherwise.is_none() ? otherwise : std::move(member));
    }
  }
  return Value(std::move(out));
}

// select, reject, selectattr, rejectattr: those for which a test says `wanted`.
Value select(const Value& value, const Arguments& arguments, Work& work, bool by_attribute,
             bool wanted) {
  const size_t test_at = by_attribute ? 1 : 0;
  const bool has_test = arguments.positional.size() > test_at;
  List out;
  if (!value.truthy()) return Value(std::move(out));
  for (const Value& one : iterate(value, work)) {
    const Value tested = by_attribute ? attribute_path(one, argument(arguments, 0), work) : one;
    const bool is = has_test ? apply_test(text_of(arguments.positional[test_at], "select"), tested,
                                          behind(arguments, test_at + 1))
                             : tested.truthy();
    if (is == wanted) out.push_back(one);
  }
  return Value(std::move(out));
}

Value join(const Value& value, const Arguments& arguments, Work& work) {
  const Value between = argument(arguments, 0, "d");
  const Value path = argument(arguments, 1, "attribute");
  std::string out;
  bool first = true;
  for (const Value& one : iterate(value, work)) {
    if (!first && !between.is_none()) out += to_text(between);
    first = false;
    out += to_text(path.is_none() ? one : attribute_path(one, path, work));
    work.spend_bytes(out.size() / 16);
  }
  return Value(std::move(out));
}

Value default_value(const Value& value, const Arguments& arguments, Work&) {
  const bool by_truth = argument(arguments, 1, "boolean").truthy();
  if (!value.is_undefined() && (!by_truth || value.truthy())) return value;
  const Value otherwise = argument(arguments, 0, "default_value");
  return arguments.positional.empty() && otherwise.is_none() ? Value("") : otherwise;
}

Value tojson(const Value& value, const Arguments& arguments, Work& work) {
  const Value indent = argument(arguments, 0, "indent");
  if (!argument(arguments, SIZE_MAX, "separators").is_none()) fail_unknown("tojson(separators)");
  JsonStyle style;
  if (!indent.is_none() && !indent.as_integer()) fail_unknown("tojson(indent) of a text");
  style.indent =
      indent.is_none() ? -1 : static_cast<int>(std::clamp<int64_t>(*indent.as_integer(), 0, 16));
  style.ascii = argument(arguments, SIZE_MAX, "ensure_ascii").truthy();
  style.sort_keys = argument(arguments, SIZE_MAX, "sort_keys").truthy();
  std::string text = to_json(value, style);
  work.spend_bytes(text.size());
  return Value(std::move(text));
}

Value sorted(const Value& value, const Arguments& arguments, Work& work) {
  const Value path = argument(arguments, 2, "attribute");
  const bool exact = argument(arguments, 1, "case_sensitive").truthy();
  const auto key = [&](const Value& one) {
    Value found = path.is_none() ? one : attribute_path(one, path, work);
    return !exact && found.text() != nullptr ? Value(cased(found, false)) : found;
  };
  List list = iterate(value, work);
  work.spend(value.weight() * 32);
  std::stable_sort(list.begin(), list.end(),
                   [&](const Value& a, const Value& b) { return less(key(a), key(b)); });
  if (argument(arguments, 0, "reverse").truthy()) std::reverse(list.begin(), list.end());
  return Value(std::move(list));
}

Value unique(const Value& value, const Arguments&, Work& work) {
  List out;
  for (const Value& one : iterate(value, work)) {
    work.spend(1 + out.size() * one.weight());
    if (std::find(out.begin(), out.end(), one) == out.end()) out.push_back(one);
  }
  return Value(std::move(out));
}

Value items(const Value& value, const Arguments&, Work& work) {
  if (value.is_undefined()) return Value(List());
  if (value.dict() == nullptr) fail_value(std::string("the items of a ") + value.type_name());
  return (*attribute(value, "items", work).function())({});
}

Value dict_sorted(const Value& value, const Arguments& arguments, Work& work) {
  if (!arguments.positional.empty() || !arguments.named.empty())
    fail_unknown("dictsort with arguments");
  Arguments by_key;
  by_key.named.emplace_back("attribute", Value(int64_t{0}));
  return sorted(items(value, {}, work), by_key, work);
}

Value indented(const Value& value, const Arguments& arguments, Work& work) {
  const Value width = argument(arguments, 0, "width");
  const std::string blanks =
      width.text() != nullptr
          ? *width.text()
          : std::string(std::clamp<int64_t>(width.as_integer().value_or(4), 0, 64), ' ');
  const bool first = argument(arguments, 1, "first").truthy();
  const bool blank = argument(arguments, 2, "blank").truthy();
  const std::string text = to_text(value);
  std::string out = first ? blanks : "";
  for (size_t at = 0; at < text.size(); ++at) {
    out += text[at];
    const bool empty = at + 1 >= text.size() || text[at + 1] == '\n';
    if (text[at] == '\n' && (blank || !empty)) out += blanks;
    work.spend_bytes(text[at] == '\n' ? blanks.size() : 0);
  }
  return Value(std::move(out));
}

Value to_integer(const Value& value, const Arguments& arguments, Work&) {
  if (const auto whole = value.as_integer()) return *whole;
  if (value.real() != nullptr && std::abs(*value.real()) < 9e18)
    return static_cast<int64_t>(*value.real());
  if (value.text() != nullptr) {
    const std::string_view digits = strip(*value.text());
    double number = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (!digits.empty() && end.ptr == digits.data() + digits.size() && std::abs(number) < 9e15) {
      return static_cast<int64_t>(number);
    }
  }
  return integer_argument(arguments, 0, "default", 0);
}

Value to_float(const Value& value, const Arguments& arguments, Work&) {
  if (const auto number = value.as_number()) return *number;
  if (value.text() != nullptr) {
    const std::string_view digits = strip(*value.text());
    double number = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (!digits.empty() && end.ptr == digits.data() + digits.size()) return number;
  }
  const Value otherwise = argument(arguments, 0, "default");
  return otherwise.is_none() ? Value(0.0) : otherwise;
}

Value extreme(const Value& value, Work& work, bool largest) {
  const List list = iterate(value, work);
  if (list.empty()) return Value(Value::Undefined{"min or max of nothing"});
  const auto order = [](const Value& a, const Value& b) { return less(a, b); };
  return largest ? *std::max_element(list.begin(), list.end(), order)
                 : *std::min_element(list.begin(), list.end(), order);
}

Value reversed(const Value& value, const Arguments&, Work& work) {
  List list = iterate(value, work);
  std::reverse(list.begin(), list.end());
  if (value.text() == nullptr) return Value(std::move(list));
  return join(Value(std::move(list)), {}, work);
}

Value end_of(const Value& value, Work& work, bool last) {
  List list = iterate(value, work);
  if (list.empty())
    return Value(Value::Undefined{last ? "the last of nothing" : "the first of nothing"});
  return last ? list.back() : list.front();
}

Value absolute(const Value& value, const Arguments&, Work&) {
  if (const auto whole = value.as_integer())
    return *whole < 0 && *whole > INT64_MIN ? -*whole : *whole;
  if (!value.as_number()) fail_value(std::string("abs of a ") + value.type_name());
  return std::abs(*value.as_number());
}

const std::map<std::string_view, Filter>& filters() {
  using V = const Value&;
  using A = const Arguments&;
  static const Filter trim = [](V v, A a, Work& w) {
    return (*attribute(Value(to_text(v)), "strip", w).function())(a);
  };
  static const std::map<std::string_view, Filter> table = {
      {"abs", absolute},
      {"attr", [](V v, A a, Work& w) { return attribute(v, text_of(argument(a, 0), "attr"), w); }},
      {"capitalize", [](V v, A, Work&) { return Value(title_cased(v, false)); }},
      {"count", length},
      {"d", default_value},
      {"default", default_value},
      {"dictsort", dict_sorted},
      {"first", [](V v, A, Work& w) { return end_of(v, w, false); }},
      {"float", to_float},
      {"indent", indented},
      {"int", to_integer},
      {"items", items},
      {"join", join},
      {"last", [](V v, A, Work& w) { return end_of(v, w, true); }},
      {"length", length},
      {"list", [](V v, A, Work& w) { return Value(iterate(v, w)); }},
      {"lower", [](V v, A, Work&) { return Value(cased(v, false)); }},
      {"map", map},
      {"max", [](V v, A, Work& w) { return extreme(v, w, true); }},
      {"min", [](V v, A, Work& w) { return extreme(v, w, false); }},
      {"reject", [](V v, A a, Work& w) { return select(v, a, w, false, false); }},
      {"rejectattr", [](V v, A a, Work& w) { return select(v, a, w, true, false); }},
      {"replace",
       [](V v, A a, Work& w) {
         return (*attribute(Value(to_text(v)), "replace", w).function())(a);
       }},
      {"reverse", reversed},
      {"safe", [](V v, A, Work&) { return Value(to_text(v)); }},
      {"select", [](V v, A a, Work& w) { return select(v, a, w, false, true); }},
      {"selectattr", [](V v, A a, Work& w) { return select(v, a, w, true, true); }},
      {"sort", sorted},
      {"string", [](V v, A, Work&) { return Value(to_text(v)); }},
      {"title", [](V v, A, Work&) { return Value(title_cased(v, true)); }},
      {"tojson", tojson},
      {"trim", trim},
      {"unique", unique},
      {"upper", [](V v, A, Work&) { return Value(cased(v, true)); }},
  };
  return table;
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   Work& work) {
  work.spend(value.weight());
  const auto found = filters().find(name);
  if (found == filters().end()) fail_unknown("the filter '" + name + "'");
  return found->second(value, arguments, work);
}

}  // namespace trireme::jinja
