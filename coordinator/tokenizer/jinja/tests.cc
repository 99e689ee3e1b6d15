// SPDX-License-Identifier: Apache-2.0
// Tests, as in `x is defined`, and how builtins read their arguments.
#include <algorithm>
#include <map>

#include "coordinator/tokenizer/jinja/builtins.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

using Test = bool (*)(const Value&, const Arguments&);

int64_t whole(const Value& value) {
  if (!value.as_integer())
    fail_value(std::string("a ") + value.type_name() + " where a number is needed");
  return *value.as_integer();
}

bool is_divisible(const Value& value, const Arguments& arguments) {
  const int64_t by = whole(argument(arguments, 0));
  if (by == 0) fail_value("divisible by 0");
  return by == -1 || whole(value) % by == 0;
}

const std::map<std::string_view, Test>& tests() {
  using V = const Value&;
  using A = const Arguments&;
  static const Test equal = [](V v, A a) { return v == argument(a, 0); };
  static const Test unequal = [](V v, A a) { return !(v == argument(a, 0)); };
  static const Test lower = [](V v, A a) { return less(v, argument(a, 0)); };
  static const Test greater = [](V v, A a) { return less(argument(a, 0), v); };
  static const Test at_most = [](V v, A a) { return !less(argument(a, 0), v); };
  static const Test at_least = [](V v, A a) { return !less(v, argument(a, 0)); };
  static const Test sequence = [](V v, A) {
    return v.text() != nullptr || v.list() != nullptr || v.dict() != nullptr || v.is_undefined();
  };
  static const std::map<std::string_view, Test> table = {
      {"!=", unequal},
      {"<", lower},
      {"<=", at_most},
      {"==", equal},
      {">", greater},
      {">=", at_least},
      {"boolean", [](V v, A) { return v.boolean() != nullptr; }},
      {"callable", [](V v, A) { return v.function() != nullptr; }},
      {"defined", [](V v, A) { return !v.is_undefined(); }},
      {"divisibleby", is_divisible},
      {"eq", equal},
      {"equalto", equal},
      {"even", [](V v, A) { return whole(v) % 2 == 0; }},
      {"false", [](V v, A) { return v.boolean() != nullptr && !*v.boolean(); }},
      {"float", [](V v, A) { return v.real() != nullptr; }},
      {"ge", at_least},
      {"greaterthan", greater},
      {"gt", greater},
      {"in", [](V v, A a) { return contains(argument(a, 0), v); }},
      {"integer", [](V v, A) { return v.integer() != nullptr; }},
      {"iterable", sequence},
      {"le", at_most},
      {"lessthan", lower},
      {"lt", lower},
      {"mapping", [](V v, A) { return v.dict() != nullptr; }},
      {"ne", unequal},
      {"none", [](V v, A) { return v.is_none(); }},
      {"number", [](V v, A) { return v.as_number().has_value(); }},
      {"odd", [](V v, A) { return whole(v) % 2 != 0; }},
      {"sameas",
       [](V v, A a) {
         // Of one object with itself; equal scalars of one type are one.
         const Value other = argument(a, 0);
         return v.list() == other.list() && v.dict() == other.dict() &&
                std::string_view(v.type_name()) == other.type_name() && v == other;
       }},
      {"sequence", sequence},
      {"string", [](V v, A) { return v.text() != nullptr; }},
      {"true", [](V v, A) { return v.boolean() != nullptr && *v.boolean(); }},
      {"undefined", [](V v, A) { return v.is_undefined(); }},
  };
  return table;
}

}  // namespace

void Work::spend(size_t steps) {
  left_ -= static_cast<int64_t>(std::min<size_t>(steps, size_t{1} << 40));
  if (left_ < 0) throw Error(Code::kResourceExhausted, "it does more than a template may");
}

void fail_value(const std::string& what) { throw Error(Code::kInvalidArgument, what); }
void fail_unknown(const std::string& what) { throw Error(Code::kUnimplemented, what); }

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto found = tests().find(name);
  if (found == tests().end()) fail_unknown("the test '" + name + "'");
  return found->second(value, arguments);
}

Value argument(const Arguments& arguments, size_t position, std::string_view name) {
  if (position < arguments.positional.size()) return arguments.positional[position];
  const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                  [&](const Member& member) { return member.first == name; });
  return found == arguments.named.end() ? Value() : found->second;
}

int64_t integer_argument(const Arguments& arguments, size_t position, std::string_view name,
                         int64_t otherwise) {
  const Value value = argument(arguments, position, name);
  return value.is_none() ? otherwise : whole(value);
}

std::string text_of(const Value& value, const char* what) {
  if (value.text() == nullptr)
    fail_value(std::string(what) + ": a " + value.type_name() + " where a text is needed");
  return *value.text();
}

}  // namespace trireme::jinja
