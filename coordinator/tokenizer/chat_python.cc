// SPDX-License-Identifier: Apache-2.0
// The calls that ChatGLM3 writes: ```python newline tool_call(city='...', days=3) newline ```.
#include <charconv>

#include "coordinator/tokenizer/chat_prompt.h"
#include "coordinator/tokenizer/chat_tools.h"
#include "coordinator/tokenizer/utf8.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

using jinja::Dict;
using jinja::List;
using jinja::Value;

constexpr std::string_view kFence = "```";
constexpr std::string_view kCall = "tool_call";

struct NoLiteral {};  // thrown and caught in this file

// tool_call(name=literal, ...): strings, numbers, True, False, None, lists, tuples, dicts of them.
class Literals {
 public:
  explicit Literals(std::string_view text) : text_(text) {}

  Value call() {
    require(kCall);
    require("(");
    Dict arguments;
    while (!take(")")) {
      std::string key = identifier();
      require("=");
      if (arguments.find(key) != nullptr || arguments.size() >= kItemsMax) throw NoLiteral();
      arguments.set(std::move(key), value(0));
      if (!take(",")) {
        require(")");
        break;
      }
    }
    skip_blanks();
    if (at_ != text_.size()) throw NoLiteral();
    return Value(std::move(arguments));
  }

 private:
  static constexpr size_t kItemsMax = 1000;
  static constexpr int kNestingMax = 32;

  void skip_blanks() {
    while (at_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  char peek() {
    skip_blanks();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(std::string_view what) {
    skip_blanks();
    if (!text_.substr(at_).starts_with(what)) return false;
    at_ += what.size();
    return true;
  }
  void require(std::string_view what) {
    if (!take(what)) throw NoLiteral();
  }

  static bool is_name_byte(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           static_cast<uint8_t>(c) >= 0x80;
  }
  std::string identifier() {
    skip_blanks();
    const size_t begin = at_;
    while (at_ < text_.size() && is_name_byte(text_[at_])) ++at_;
    if (at_ == begin || (text_[begin] >= '0' && text_[begin] <= '9')) throw NoLiteral();
    return std::string(text_.substr(begin, at_ - begin));
  }

  Value value(int nesting) {
    if (nesting > kNestingMax) throw NoLiteral();
    const char c = peek();
    if (c == '\'' || c == '"') return string();
    if (take("[")) return items("]", nesting);
    if (take("(")) return items(")", nesting);
    if (take("{")) return dict(nesting);
    if (c == '-' || c == '.' || (c >= '0' && c <= '9')) return number();
    const std::string word = identifier();
    if (word == "True" || word == "true") return true;
    if (word == "False" || word == "false") return false;
    if (word == "None" || word == "null") return Value();
    throw NoLiteral();
  }

  // Also a tuple: JSON has lists only. (x) is x.
  Value items(std::string_view close, int nesting) {
    List list;
    bool comma = false;
    while (!take(close)) {
      if (list.size() >= kItemsMax) throw NoLiteral();
      list.push_back(value(nesting + 1));
      comma = take(",");
      if (!comma) {
        require(close);
        break;
      }
    }
    if (close == ")" && list.size() == 1 && !comma) return list[0];
    return Value(std::move(list));
  }

  Value dict(int nesting) {
    Dict dict;
    while (!take("}")) {
      if (dict.size() >= kItemsMax) throw NoLiteral();
      Value key = value(nesting + 1);
      if (key.text() == nullptr) throw NoLiteral();
      require(":");
      dict.set(*key.text(), value(nesting + 1));
      if (!take(",")) {
        require("}");
        break;
      }
    }
    return Value(std::move(dict));
  }

  Value number() {
    const size_t begin = at_;
    if (text_[at_] == '-') ++at_;
    const size_t digits = at_;
    while (at_ < text_.size() &&
           (is_name_byte(text_[at_]) || text_[at_] == '.' ||
            ((text_[at_] == '-' || text_[at_] == '+') && (text_[at_ - 1] | 32) == 'e'))) {
      ++at_;
    }
    const char* const from = text_.data() + begin;
    const char* const to = text_.data() + at_;
    int64_t whole = 0;
    if (const auto end = std::from_chars(from, to, whole); end.ptr == to && end.ec == std::errc()) {
      const bool octal = at_ - digits > 1 && text_[digits] == '0';
      if (octal) throw NoLiteral();
      return whole;
    }
    double real = 0;
    const auto end = std::from_chars(from, to, real);
    const bool is_word =
        digits < at_ && ((text_[digits] | 32) == 'i' || (text_[digits] | 32) == 'n');
    if (end.ptr != to || end.ec != std::errc() || is_word) throw NoLiteral();
    return real;
  }

  Value string() {
    const char quote = text_[at_++];
    std::string out;
    while (true) {
      if (at_ >= text_.size() || text_[at_] == '\n') throw NoLiteral();
      const char c = text_[at_++];
      if (c == quote) break;
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
    if (find_broken_utf8(out).has_value()) throw NoLiteral();
    return Value(std::move(out));
  }

  void escape(std::string& out) {
    if (at_ >= text_.size()) throw NoLiteral();
    const char c = text_[at_++];
    constexpr std::string_view kNames = "ntrabfv0\\'\"\n";
    constexpr std::string_view kBytes("\n\t\r\a\b\f\v\0\\'\"", 11);
    if (c == 'x' || c == 'u' || c == 'U')
      return append_character(hex(c == 'x' ? 2 : c == 'u' ? 4 : 8), out);
    const size_t found = kNames.find(c);
    if (found == kNames.npos) {
      out += {'\\', c};  // as Python keeps it
    } else if (c != '\n') {
      out += kBytes[found];
    }
  }
  uint32_t hex(size_t digits) {
    uint32_t point = 0;
    const char* const from = text_.data() + at_;
    if (text_.size() - at_ < digits) throw NoLiteral();
    const auto end = std::from_chars(from, from + digits, point, 16);
    if (end.ptr != from + digits) throw NoLiteral();
    at_ += digits;
    return point;
  }

  const std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::optional<Value> read_python_call(std::string_view fenced) {
  std::string_view body = strip(fenced);
  if (!body.starts_with(kFence) || !body.ends_with(kFence) || body.size() < 2 * kFence.size()) {
    return std::nullopt;
  }
  const size_t line = body.find('\n');  // behind the language of the fence
  if (line == body.npos || line + kFence.size() >= body.size()) return std::nullopt;
  body = body.substr(line + 1, body.size() - line - 1 - kFence.size());
  try {
    return Literals(strip(body)).call();
  } catch (const NoLiteral&) {
    return std::nullopt;
  } catch (const Error&) {  // nested too deep
    return std::nullopt;
  }
}

std::string write_python_call(const Value& arguments) {
  std::string text = "```python\ntool_call(";
  bool first = true;
  for (const auto& [key, value] : arguments.dict()->members()) {
    if (!first) text += ", ";
    first = false;
    text += key + "=" + jinja::to_repr(value);
  }
  return text + ")\n```";
}

}  // namespace trireme
