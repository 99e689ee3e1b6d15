// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/jinja/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

constexpr size_t kMembersMax = 1000;  // a key is looked for one by one

// Builds a Value from the parser's events, without recursion.
class Reader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  const Value& result() const { return result_; }
  const std::string& problem() const { return problem_; }

  bool null() override { return take(Value()); }
  bool boolean(bool value) override { return take(value); }
  bool number_integer(int64_t value) override { return take(value); }
  bool number_unsigned(uint64_t value) override {
    return value <= INT64_MAX ? take(static_cast<int64_t>(value))
                              : take(static_cast<double>(value));
  }
  bool number_float(double value, const std::string&) override { return take(value); }
  bool string(std::string& value) override { return take(std::move(value)); }
  bool binary(nlohmann::json::binary_t&) override { return fail("it holds binary data"); }
  bool start_object(size_t) override { return open(true); }
  bool start_array(size_t) override { return open(false); }
  bool key(std::string& name) override {
    open_.back().key = std::move(name);
    return true;
  }
  bool end_object() override {
    Dict dict = std::move(open_.back().dict);
    open_.pop_back();
    return take(Value(std::move(dict)));
  }
  bool end_array() override {
    List list = std::move(open_.back().list);
    open_.pop_back();
    return take(Value(std::move(list)));
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    // Out of range: a number that no double holds.
    const bool range = error.id > 400;
    return fail((range ? "a number that is too large ends at byte " : "no JSON goes on at byte ") +
                std::to_string(position));
  }

 private:
  struct Open {
    bool is_object = false;
    std::string key;
    Dict dict;
    List list;
  };

  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  bool open(bool is_object) {
    // One less than the most: the values inside count too.
    if (open_.size() + 1 >= kDepthMax) {
      return fail("it is nested more than " + std::to_string(kDepthMax - 1) + " deep");
    }
    open_.emplace_back();
    open_.back().is_object = is_object;
    return true;
  }
  bool take(Value value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (!open_.back().is_object) {
      open_.back().list.push_back(std::move(value));
    } else {
      Open& object = open_.back();
      object.dict.set(std::move(object.key), std::move(value));
      if (object.dict.size() > kMembersMax) {
        return fail("an object has more than " + std::to_string(kMembersMax) + " members");
      }
    }
    return true;
  }

  std::vector<Open> open_;
  Value result_;
  std::string problem_;
};

void append_unicode(uint32_t point, std::string& out) {
  constexpr char kDigits[] = "0123456789abcdef";
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out += kDigits[point >> shift & 15];
}

class Writer {
 public:
  explicit Writer(const JsonStyle& style) : style_(style) {}

  void write(const Value& value, int level) {
    if (value.text() != nullptr) return write_text(*value.text());
    if (value.list() != nullptr) return write_list(*value.list(), level);
    if (value.dict() != nullptr) return write_dict(*value.dict(), level);
    if (value.is_none()) {
      out_ += "null";
    } else if (value.boolean() != nullptr) {
      out_ += *value.boolean() ? "true" : "false";
    } else if (value.as_number()) {
      const double number = *value.as_number();
      out_ += value.boolean() == nullptr && std::isfinite(number) ? to_text(value)
              : std::isnan(number)                                ? "NaN"
              : number > 0                                        ? "Infinity"
                                                                  : "-Infinity";
    } else {
      throw Error(Code::kInvalidArgument,
                  std::string("cannot write a value of type ") + value.type_name() + " as JSON");
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void separate(bool first, int level) {
    if (!first) out_ += style_.indent < 0 ? ", " : ",";
    if (style_.indent < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(style_.indent) * level, ' ');
  }
  void write_list(const List& list, int level) {
    out_ += '[';
    for (size_t i = 0; i < list.size(); ++i) {
      separate(i == 0, level + 1);
      write(list[i], level + 1);
    }
    close(']', list.empty(), level);
  }
  void write_dict(const Dict& dict, int level) {
    std::vector<const Member*> members;
    for (const Member& member : dict.members()) members.push_back(&member);
    if (style_.sort_keys) {
      std::sort(members.begin(), members.end(),
                [](const Member* a, const Member* b) { return a->first < b->first; });
    }
    out_ += '{';
    for (size_t i = 0; i < members.size(); ++i) {
      separate(i == 0, level + 1);
      write_text(members[i]->first);
      out_ += ": ";
      write(members[i]->second, level + 1);
    }
    close('}', members.empty(), level);
  }
  void close(char bracket, bool empty, int level) {
    if (!empty && style_.indent >= 0) separate(true, level);
    out_ += bracket;
  }

  void write_text(const std::string& text) {
    out_ += '"';
    for (size_t at = 0; at < text.size(); ++at) {
      const char c = text[at];
      const auto byte = static_cast<uint8_t>(c);
      if (c == '"' || c == '\\') {
        out_ += {'\\', c};
      } else if (c == '\n' || c == '\r' || c == '\t' || c == '\b' || c == '\f') {
        out_ += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : c == '\b' ? 'b' : 'f'};
      } else if (byte < 0x20 || (style_.ascii && byte == 0x7F)) {
        append_unicode(byte, out_);
      } else if (style_.ascii && byte >= 0x80) {
        const size_t length = first_character(std::string_view(text).substr(at)).length;
        write_escaped(code_point(std::string_view(text).substr(at, length)));
        at += length - 1;
      } else {
        out_ += c;
      }
    }
    out_ += '"';
  }
  void write_escaped(uint32_t point) {
    if (point < 0x10000) return append_unicode(point, out_);
    append_unicode(0xD800 + ((point - 0x10000) >> 10), out_);
    append_unicode(0xDC00 + ((point - 0x10000) & 0x3FF), out_);
  }
  static uint32_t code_point(std::string_view character) {
    uint32_t point = static_cast<uint8_t>(character[0]);
    if (character.size() > 1) point &= 0x7Fu >> character.size();
    for (const char c : character.substr(1)) point = point << 6 | (static_cast<uint8_t>(c) & 0x3F);
    return point;
  }

  const JsonStyle style_;
  std::string out_;
};

}  // namespace

Value parse_json(std::string_view text) {
  Reader reader;
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &reader)) return reader.result();
  throw Error(Code::kInvalidArgument, reader.problem());
}

std::string to_json(const Value& value, const JsonStyle& style) {
  Writer writer(style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace trireme::jinja
