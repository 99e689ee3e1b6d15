// SPDX-License-Identifier: Apache-2.0
// What templates can call: filters, tests, methods and functions, by their names in Jinja and
// Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/jinja/value.h"

namespace trireme::jinja {

// What a template may still do: a step or some bytes of text cost one each. Nothing that is made is
// larger than what was paid for, so neither time nor memory has another bound.
class Work {
 public:
  explicit Work(int64_t most) : left_(most) {}
  // Throws kResourceExhausted.
  void spend(size_t steps);
  void spend_bytes(size_t bytes) { spend(1 + bytes / 16); }

 private:
  int64_t left_;
};

[[noreturn]] void fail_value(const std::string& what);  // the template refuses this conversation
[[noreturn]] void fail_unknown(const std::string& what);

// Throw kUnimplemented for an unknown name.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   Work& work);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);

// object.name: a method, else a member; undefined where there is none.
Value attribute(const Value& object, const std::string& name, Work& work);
// object[key], a member or an element.
Value item(const Value& object, const Value& key, Work& work);
Value slice(const Value& object, const Value& start, const Value& stop, const Value& step,
            Work& work);

// What a loop goes over; throws for what cannot be iterated.
List iterate(const Value& value, Work& work);
bool contains(const Value& container, const Value& value);
// a < b; throws where Python cannot order them.
bool less(const Value& a, const Value& b);

// The characters of a text, as views into it.
std::vector<std::string_view> characters(std::string_view text);

// An argument by position or name; none where it is not given.
Value argument(const Arguments& arguments, size_t position, std::string_view name = {});
int64_t integer_argument(const Arguments& arguments, size_t position, std::string_view name,
                         int64_t otherwise);
std::string text_of(const Value& value, const char* what);

}  // namespace trireme::jinja
