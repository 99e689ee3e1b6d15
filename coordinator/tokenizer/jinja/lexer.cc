// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/jinja/lexer.h"

#include <algorithm>
#include <charconv>

#include "coordinator/tokenizer/chat_prompt.h"
#include "kernels/base/error.h"

namespace trireme::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_begin(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}

// Jinja reads every kind of line end as one, and drops the last one of the file.
std::string normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') continue;
      text += '\n';
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalized(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text();
    push(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(Code::kInvalidArgument, "line " + std::to_string(line_) + ": " + what);
  }
  void push(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  bool follows(std::string_view what) const {
    return std::string_view(source_).substr(at_).starts_with(what);
  }
  void skip(size_t size) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + size, '\n'));
    at_ += size;
    line_begins_ = size > 0 && source_[at_ - 1] == '\n';
  }
  void skip_blanks() {
    const std::string_view rest = std::string_view(source_).substr(at_);
    skip(rest.size() - strip_left(rest).size());
  }

  // Text up to the next tag, then the tag.
  void read_text() {
    size_t begin = at_;
    while (begin < source_.size() && !is_tag(begin)) ++begin;
    std::string text = source_.substr(at_, begin - at_);
    if (begin == source_.size()) {
      if (!text.empty()) push(Token::Kind::kText, text);
      at_ = begin;
      return;
    }
    const char kind = source_[begin + 1];
    const char sign = begin + 2 < source_.size() ? source_[begin + 2] : '\0';
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && kind != '{') {
      strip_line(text);
    }
    if (!text.empty()) push(Token::Kind::kText, text);
    skip(begin - at_ + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return read_comment();
    if (kind == '{') return read_tag(Token::Kind::kOutputBegin);
    if (!read_raw()) read_tag(Token::Kind::kBlockBegin);
  }

  bool is_tag(size_t at) const {
    return source_[at] == '{' && at + 1 < source_.size() &&
           (source_[at + 1] == '{' || source_[at + 1] == '%' || source_[at + 1] == '#');
  }

  // lstrip_blocks: blanks between the line's begin and a tag that is no output go.
  void strip_line(std::string& text) const {
    const size_t newline = text.rfind('\n');
    if (newline == text.npos && !line_begins_) return;
    const size_t begin = newline == text.npos ? 0 : newline + 1;
    if (strip_left(std::string_view(text).substr(begin)).empty()) text.resize(begin);
  }

  void read_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == source_.npos) fail("a comment has no end");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    skip(end + 2 - at_);
    end_tag(sign);
  }

  // trim_blocks: one newline behind a tag that is no output goes.
  void end_tag(char sign) {
    if (sign == '-') return skip_blanks();
    if (sign != '+' && follows("\n")) skip(1);
  }

  // {% raw %} ... {% endraw %}
  bool read_raw() {
    const size_t begin = at_;
    const int line = line_;
    skip_blanks();
    if (!follows("raw")) return back(begin, line);
    skip(3);
    skip_blanks();
    const char open_sign = follows("-") || follows("+") ? source_[at_] : '\0';
    if (open_sign != '\0') skip(1);
    if (!follows("%}")) return back(begin, line);
    skip(2);
    end_tag(open_sign);
    for (size_t tag = source_.find("{%", at_); tag != source_.npos;
         tag = source_.find("{%", tag + 1)) {
      size_t at = tag + 2;
      const char sign =
          at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at++] : '\0';
      const auto skip_spaces = [&] {
        while (at < source_.size() && (source_[at] == ' ' || source_[at] == '\n')) ++at;
      };
      skip_spaces();
      if (source_.compare(at, 6, "endraw") != 0) continue;
      at += 6;
      skip_spaces();
      const char close =
          at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at++] : '\0';
      if (source_.compare(at, 2, "%}") != 0) continue;
      std::string text = source_.substr(at_, tag - at_);
      if (sign == '-') text = strip_right(text);
      if (sign == '\0') strip_line(text);
      if (!text.empty()) push(Token::Kind::kText, text);
      skip(at + 2 - at_);
      end_tag(close);
      return true;
    }
    fail("raw has no end");
  }
  bool back(size_t at, int line) {
    at_ = at;
    line_ = line;
    return false;
  }

  void read_tag(Token::Kind kind) {
    const bool output = kind == Token::Kind::kOutputBegin;
    push(kind, "");
    std::string open;  // brackets: an end inside of them is none
    while (true) {
      skip_blanks();
      if (at_ >= source_.size()) fail("a tag has no end");
      const char sign = follows("-") || (follows("+") && !output) ? source_[at_] : '\0';
      const size_t end = at_ + (sign == '\0' ? 0 : 1);
      if (open.empty() && source_.compare(end, 2, output ? "}}" : "%}") == 0) {
        push(output ? Token::Kind::kOutputEnd : Token::Kind::kBlockEnd, "");
        skip(end + 2 - at_);
        if (!output) return end_tag(sign);
        if (sign == '-') skip_blanks();
        return;
      }
      read_token(open);
    }
  }

  void read_token(std::string& open) {
    const char c = source_[at_];
    if (is_name_begin(c)) {
      size_t end = at_;
      while (end < source_.size() && (is_name_begin(source_[end]) || is_digit(source_[end]))) ++end;
      push(Token::Kind::kName, source_.substr(at_, end - at_));
      return skip(end - at_);
    }
    if (is_digit(c)) return read_number();
    if (c == '\'' || c == '"') return read_string();
    static constexpr std::string_view kOperators[] = {
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "<",
        ">",  "=",  ".",  ":",  "|",  ",",  "(", ")", "[", "]", "{", "}"};
    const auto found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                    [&](std::string_view text) { return follows(text); });
    if (found == std::end(kOperators))
      fail(std::string("the character '") + c + "' is not expected");
    constexpr std::string_view kOpen = "([{";
    constexpr std::string_view kClose = ")]}";
    if (kOpen.find(c) != kOpen.npos) open += c;
    if (const size_t close = kClose.find(c); close != kClose.npos) {
      if (open.empty() || open.back() != kOpen[close])
        fail(std::string("'") + c + "' closes nothing");
      open.pop_back();
    }
    push(Token::Kind::kOperator, std::string(*found));
    skip(found->size());
  }

  void read_number() {
    std::string digits;
    size_t end = at_;
    bool real = false;
    const auto take_digits = [&] {
      for (; end < source_.size() && (is_digit(source_[end]) || source_[end] == '_'); ++end) {
        if (source_[end] != '_') digits += source_[end];
      }
    };
    take_digits();
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      real = true;
      digits += source_[end++];
      take_digits();
    }
    if (end + 1 < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const bool sign = source_[end + 1] == '-' || source_[end + 1] == '+';
      if (is_digit(source_[std::min(end + (sign ? 2 : 1), source_.size() - 1)])) {
        real = true;
        digits += 'e';
        if (sign) digits += source_[end + 1];
        end += sign ? 2 : 1;
        take_digits();
      }
    }
    push(Token::Kind::kNumber, digits);
    const char* const last = digits.data() + digits.size();
    int64_t whole = 0;
    double number = 0;
    const std::errc error =
        real ? std::from_chars(digits.data() + (digits[0] == '+' ? 1 : 0), last, number).ec
             : std::from_chars(digits.data(), last, whole).ec;
    if (error != std::errc()) fail("the number " + digits.substr(0, 40) + " is too large");
    tokens_.back().value = real ? Value(number) : Value(whole);
    skip(end - at_);
  }

  void read_string() {
    const char quote = source_[at_];
    const size_t begin = at_ + 1;
    size_t end = begin;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string has no end");
    push(Token::Kind::kString, unescaped(std::string_view(source_).substr(begin, end - begin)));
    skip(end + 1 - at_);
  }

  // Python's escapes; one that it does not know stays as it is.
  std::string unescaped(std::string_view text) const {
    constexpr std::string_view kNames = "ntrabfv\\'\"\n";
    constexpr std::string_view kBytes = "\n\t\r\a\b\f\v\\'\"";
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
      if (digits > 0) {
        uint32_t point = 0;
        const char* const from = text.data() + i + 1;
        if (text.size() - i - 1 < digits) fail("a string has a broken escape");
        if (std::from_chars(from, from + digits, point, 16).ptr != from + digits) {
          fail("a string has a broken escape");
        }
        append_character(point, out);
        i += digits;
      } else if (c >= '0' && c <= '7') {
        uint32_t point = 0;
        const size_t first = i;
        while (i < text.size() && i < first + 3 && text[i] >= '0' && text[i] <= '7') {
          point = point * 8 + static_cast<uint32_t>(text[i++] - '0');
        }
        --i;
        append_character(point, out);
      } else if (const size_t found = kNames.find(c); found == kNames.npos) {
        out += {'\\', c};
      } else if (c != '\n') {
        out += kBytes[found];
      }
    }
    return out;
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_begins_ = true;  // what was read last ended with a newline
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) { return Lexer(source).run(); }

}  // namespace trireme::jinja
