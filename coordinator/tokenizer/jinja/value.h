// SPDX-License-Identifier: Apache-2.0
// A value of a template, and of the JSON that tools and their calls are written in: Python's types
// as far as chat templates see them. Immutable but for namespaces; lists and dicts are shared, not
// copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace trireme::jinja {

class Value;
using List = std::vector<Value>;
using Member = std::pair<std::string, Value>;

// Lists in lists: whatever is made, by a template or a client, stays so flat that recursion over it
// is safe.
inline constexpr int kDepthMax = 64;
// The same for size: a list may hold one list many times, and text of it grows with that.
inline constexpr size_t kWeightMax = size_t{1} << 18;

// Members in the order in which they were given, as Python's dict has them; keys are strings.
class Dict {
 public:
  const Value* find(std::string_view key) const;
  void set(std::string key, Value value);
  const std::vector<Member>& members() const { return members_; }
  size_t size() const;

 private:
  std::vector<Member> members_;
};

// Arguments of a call: positional ones, then those by name.
struct Arguments {
  List positional;
  std::vector<Member> named;
};
using Function = std::function<Value(const Arguments&)>;

class Value {
 public:
  // What a name that was never set has. text: the name, for messages.
  struct Undefined {
    std::string name;
  };
  struct Namespace {
    std::shared_ptr<Dict> members;
  };

  Value();  // none
  // Out of line, like the destructor: inlined everywhere they are much code.
  Value(const Value&);
  Value(Value&&) noexcept;
  Value& operator=(const Value&);
  Value& operator=(Value&&) noexcept;
  ~Value();
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(int value) : data_(int64_t{value}) {}
  Value(double value) : data_(value) {}
  Value(std::string text) : data_(std::move(text)) {}
  Value(std::string_view text) : data_(std::string(text)) {}
  Value(const char* text) : data_(std::string(text)) {}
  // Throw kInvalidArgument where the result would be deeper than kDepthMax or heavier than
  // kWeightMax.
  Value(List items);
  Value(Dict dict);
  Value(Namespace space) : data_(std::move(space)) {}
  Value(Function function) : data_(std::make_shared<const Function>(std::move(function))) {}

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<std::nullptr_t>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&data_); }
  const double* real() const { return std::get_if<double>(&data_); }
  const std::string* text() const { return std::get_if<std::string>(&data_); }
  const List* list() const;
  const Dict* dict() const;
  const Namespace* space() const { return std::get_if<Namespace>(&data_); }
  const Function* function() const;
  const Undefined* undefined() const { return std::get_if<Undefined>(&data_); }

  bool truthy() const;
  // bool counts as 0 or 1, as in Python.
  std::optional<int64_t> as_integer() const;
  std::optional<double> as_number() const;
  int depth() const;  // 0 for a scalar
  size_t weight()
      const;  // values that it is made of, shared ones counted each time, and their text
  const char* type_name() const;  // Python's
  bool operator==(const Value& other) const;

 private:
  struct SharedList {
    List items;
    int depth;
    size_t weight;
  };
  struct SharedDict {
    Dict dict;
    int depth;
    size_t weight;
  };
  std::variant<std::nullptr_t, Undefined, bool, int64_t, double, std::string,
               std::shared_ptr<const SharedList>, std::shared_ptr<const SharedDict>, Namespace,
               std::shared_ptr<const Function>>
      data_;
};

inline size_t Dict::size() const { return members_.size(); }

// Python's str() and repr().
std::string to_text(const Value& value);
std::string to_repr(const Value& value);

// The shortest digits that read back as this number, as Python writes them.
std::string number_text(double value);

}  // namespace trireme::jinja
