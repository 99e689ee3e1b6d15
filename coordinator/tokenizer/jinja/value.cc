// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

struct Extent {
  int depth = 0;
  size_t weight = 1;
  void add(const Value& value) {
    depth = std::max(depth, value.depth());
    weight += value.weight();
    if (depth >= kDepthMax || weight > kWeightMax) {
      throw Error(Code::kInvalidArgument,
                  "lists or objects are nested more than " + std::to_string(kDepthMax) +
                      " deep or hold more than " + std::to_string(kWeightMax) + " values");
    }
  }
};

// Python quotes with ' unless the text has one and no ".
std::string quoted(const std::string& text) {
  const bool single = text.find('\'') == text.npos || text.find('"') != text.npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n' || c == '\t' || c == '\r') {
      out += c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r";
    } else if (byte < 0x20 || byte == 0x7F) {
      constexpr char kDigits[] = "0123456789abcdef";
      out += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    } else {
      out += c;
    }
  }
  return out + quote;
}

template <class Items, class Write>
std::string joined(const Items& items, char open, char close, const Write& write) {
  std::string out(1, open);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    out += write(items[i]);
  }
  return out + close;
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  const auto found = std::find_if(members_.begin(), members_.end(),
                                  [&](const Member& member) { return member.first == key; });
  return found == members_.end() ? nullptr : &found->second;
}

void Dict::set(std::string key, Value value) {
  const auto found = std::find_if(members_.begin(), members_.end(),
                                  [&](const Member& member) { return member.first == key; });
  if (found == members_.end()) {
    members_.emplace_back(std::move(key), std::move(value));
  } else {
    found->second = std::move(value);
  }
}

Value::Value() : data_(nullptr) {}
Value::Value(const Value&) = default;
Value::Value(Value&&) noexcept = default;
Value& Value::operator=(const Value&) = default;
Value& Value::operator=(Value&&) noexcept = default;
Value::~Value() = default;

Value::Value(List items) : data_(nullptr) {
  Extent extent;
  for (const Value& item : items) extent.add(item);
  data_ = std::make_shared<const SharedList>(
      SharedList{std::move(items), extent.depth + 1, extent.weight});
}

Value::Value(Dict dict) : data_(nullptr) {
  Extent extent;
  for (const Member& member : dict.members()) {
    extent.weight += member.first.size() / 16;
    extent.add(member.second);
  }
  data_ = std::make_shared<const SharedDict>(
      SharedDict{std::move(dict), extent.depth + 1, extent.weight});
}

const List* Value::list() const {
  const auto* shared = std::get_if<std::shared_ptr<const SharedList>>(&data_);
  return shared == nullptr ? nullptr : &(*shared)->items;
}

const Dict* Value::dict() const {
  const auto* shared = std::get_if<std::shared_ptr<const SharedDict>>(&data_);
  return shared == nullptr ? nullptr : &(*shared)->dict;
}

const Function* Value::function() const {
  const auto* shared = std::get_if<std::shared_ptr<const Function>>(&data_);
  return shared == nullptr ? nullptr : shared->get();
}

int Value::depth() const {
  if (const auto* shared = std::get_if<std::shared_ptr<const SharedList>>(&data_)) {
    return (*shared)->depth;
  }
  const auto* shared = std::get_if<std::shared_ptr<const SharedDict>>(&data_);
  return shared == nullptr ? 0 : (*shared)->depth;
}

size_t Value::weight() const {
  if (text() != nullptr) return 1 + text()->size() / 16;
  if (const auto* shared = std::get_if<std::shared_ptr<const SharedList>>(&data_)) {
    return (*shared)->weight;
  }
  const auto* shared = std::get_if<std::shared_ptr<const SharedDict>>(&data_);
  return shared == nullptr ? 1 : (*shared)->weight;
}

bool Value::truthy() const {
  if (const auto number = as_number()) return *number != 0;
  if (text() != nullptr) return !text()->empty();
  if (list() != nullptr) return !list()->empty();
  if (dict() != nullptr) return dict()->size() > 0;
  return !is_none() && !is_undefined();
}

std::optional<int64_t> Value::as_integer() const {
  if (boolean() != nullptr) return *boolean() ? 1 : 0;
  return integer() == nullptr ? std::nullopt : std::optional(*integer());
}

std::optional<double> Value::as_number() const {
  if (real() != nullptr) return *real();
  const auto whole = as_integer();
  return whole ? std::optional(static_cast<double>(*whole)) : std::nullopt;
}

const char* Value::type_name() const {
  static constexpr const char* kNames[] = {"NoneType",  "undefined", "bool", "int",
                                           "float",     "str",       "list", "dict",
                                           "namespace", "function"};
  return kNames[data_.index()];
}

bool Value::operator==(const Value& other) const {
  if (as_integer() && other.as_integer()) return *as_integer() == *other.as_integer();
  if (as_number() && other.as_number()) return *as_number() == *other.as_number();
  if (data_.index() != other.data_.index()) return false;
  if (text() != nullptr) return *text() == *other.text();
  if (list() != nullptr) return list() == other.list() || *list() == *other.list();
  if (dict() != nullptr) {
    if (dict()->size() != other.dict()->size()) return false;
    return std::all_of(dict()->members().begin(), dict()->members().end(),
                       [&](const Member& member) {
                         const Value* twin = other.dict()->find(member.first);
                         return twin != nullptr && *twin == member.second;
                       });
  }
  if (space() != nullptr) return space()->members == other.space()->members;
  return function() == other.function();  // none and undefined: both null
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[32];
  const auto end =
      std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific);
  const std::string_view shortest(digits, static_cast<size_t>(end.ptr - digits));
  const size_t e = shortest.find('e');
  int exponent = 0;
  const char* from = shortest.data() + e + (shortest[e + 1] == '+' ? 2 : 1);
  std::from_chars(from, shortest.data() + shortest.size(), exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  const auto fixed = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed);
  std::string text(digits, fixed.ptr);
  return text.find('.') == text.npos ? text + ".0" : text;
}

std::string to_repr(const Value& value) {
  if (value.text() != nullptr) return quoted(*value.text());
  if (value.list() != nullptr) return joined(*value.list(), '[', ']', to_repr);
  if (value.dict() != nullptr) {
    return joined(value.dict()->members(), '{', '}', [](const Member& member) {
      return quoted(member.first) + ": " + to_repr(member.second);
    });
  }
  if (value.undefined() != nullptr) return "Undefined";
  return to_text(value);
}

std::string to_text(const Value& value) {
  if (value.text() != nullptr) return *value.text();
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.boolean() != nullptr) return *value.boolean() ? "True" : "False";
  if (value.integer() != nullptr) return std::to_string(*value.integer());
  if (value.real() != nullptr) return number_text(*value.real());
  if (value.list() != nullptr || value.dict() != nullptr) return to_repr(value);
  throw Error(Code::kUnimplemented, std::string("a ") + value.type_name() + " as text");
}

}  // namespace trireme::jinja
