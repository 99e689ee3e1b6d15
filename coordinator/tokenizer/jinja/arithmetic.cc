// SPDX-License-Identifier: Apache-2.0
// Python's binary operators.
#include <cmath>

#include "coordinator/tokenizer/jinja/evaluator.h"

namespace trireme::jinja {
namespace {

[[noreturn]] void fail_types(const std::string& symbol, const Value& left, const Value& right) {
  for (const Value* side : {&left, &right}) {
    if (side->is_undefined()) fail_value("'" + side->undefined()->name + "' is undefined");
  }
  fail_value("a " + std::string(left.type_name()) + " " + symbol + " a " + right.type_name());
}

Value whole_numbers(const std::string& symbol, int64_t left, int64_t right) {
  int64_t result = 0;
  bool overflow = false;
  if (symbol == "+") {
    overflow = __builtin_add_overflow(left, right, &result);
  } else if (symbol == "-") {
    overflow = __builtin_sub_overflow(left, right, &result);
  } else if (symbol == "*") {
    overflow = __builtin_mul_overflow(left, right, &result);
  } else if (right == 0) {
    fail_value("a division by 0");
  } else if (symbol == "/") {
    return static_cast<double>(left) / static_cast<double>(right);
  } else if (right == -1) {  // INT64_MIN has no opposite
    if (symbol == "//") overflow = __builtin_sub_overflow(int64_t{0}, left, &result);
  } else {
    // Rounded down, where C++ rounds to zero.
    const int64_t rest = left % right;
    const bool down = rest != 0 && (rest < 0) != (right < 0);
    result = symbol == "%" ? rest + (down ? right : 0) : left / right - (down ? 1 : 0);
  }
  if (overflow) fail_unknown("a number beyond 64 bits");
  return result;
}

Value power(int64_t base, int64_t exponent) {
  if (exponent < 0) return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  if (base == 0 || base == 1) return exponent == 0 ? int64_t{1} : base;
  if (base == -1) return exponent % 2 == 0 ? 1 : -1;
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) {  // of 2 at least: 63 steps are the most
    if (__builtin_mul_overflow(result, base, &result)) fail_unknown("a number beyond 64 bits");
  }
  return result;
}

Value real_numbers(const std::string& symbol, double left, double right) {
  if (symbol == "+") return left + right;
  if (symbol == "-") return left - right;
  if (symbol == "*") return left * right;
  if (symbol == "**") return std::pow(left, right);
  if (right == 0) fail_value("a division by 0");
  if (symbol == "/") return left / right;
  if (symbol == "//") return std::floor(left / right);
  return left - right * std::floor(left / right);
}

// text * number, list * number.
Value repeated(const Value& value, int64_t times, Work& work) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  if (count == 0) return value.text() != nullptr ? Value("") : Value(List());
  // Paid for before it is made.
  if (count > (size_t{1} << 40) / value.weight()) {
    fail_value("a text or list is repeated too often");
  }
  work.spend(value.weight() * count);
  std::string text;
  List list;
  for (size_t i = 0; i < count; ++i) {
    if (value.text() != nullptr) {
      text += *value.text();
    } else {
      list.insert(list.end(), value.list()->begin(), value.list()->end());
    }
  }
  return value.text() != nullptr ? Value(std::move(text)) : Value(std::move(list));
}

}  // namespace

Value calculate(const std::string& symbol, const Value& left, const Value& right, Work& work) {
  if (symbol == "~") {
    std::string text = to_text(left) + to_text(right);
    work.spend_bytes(text.size());
    return Value(std::move(text));
  }
  if (left.as_integer() && right.as_integer()) {
    if (symbol == "**") return power(*left.as_integer(), *right.as_integer());
    return whole_numbers(symbol, *left.as_integer(), *right.as_integer());
  }
  if (left.as_number() && right.as_number())
    return real_numbers(symbol, *left.as_number(), *right.as_number());
  if (symbol == "+" && left.text() != nullptr && right.text() != nullptr) {
    work.spend_bytes(left.text()->size() + right.text()->size());
    return Value(*left.text() + *right.text());
  }
  if (symbol == "+" && left.list() != nullptr && right.list() != nullptr) {
    work.spend(left.weight() + right.weight());
    List list = *left.list();
    list.insert(list.end(), right.list()->begin(), right.list()->end());
    return Value(std::move(list));
  }
  const auto repeats = [](const Value& value) {
    return value.text() != nullptr || value.list() != nullptr;
  };
  if (symbol == "*" && repeats(left) && right.as_integer())
    return repeated(left, *right.as_integer(), work);
  if (symbol == "*" && repeats(right) && left.as_integer())
    return repeated(right, *left.as_integer(), work);
  if (symbol == "%" && left.text() != nullptr) fail_unknown("'%' on texts");
  fail_types(symbol, left, right);
}

}  // namespace trireme::jinja
