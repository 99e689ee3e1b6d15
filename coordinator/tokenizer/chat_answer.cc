// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/chat_answer.h"

#include <algorithm>
#include <utility>

#include "coordinator/tokenizer/chat_prompt.h"

namespace trireme {
namespace {

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.';
}

class GlmAnswer final : public AnswerReader {
 public:
  explicit GlmAnswer(GlmAnswerStyle style) : style_(std::move(style)) {}

  std::string push(std::string_view text) override {
    if (plain_) return stripped(text);
    held_ += text;
    return may_be_call() ? "" : begin_plain();
  }

  std::string special(int32_t id) override {
    if (style_.assistant_id != id) return "";
    std::string text = end_part();
    plain_ = false;
    blanks_.clear();
    begun_ = false;
    return text;
  }

  std::string finish() override { return end_part(); }

 private:
  // Whether what is held can still become a call: a name, a newline, the beginning of a call's
  // body.
  bool may_be_call() const {
    if (style_.call_begin.empty()) return false;
    const std::string_view held = held_;
    const size_t newline = held.find('\n');
    const std::string_view first = held.substr(0, newline);
    const std::string_view name = newline == held.npos ? strip_left(first) : strip(first);
    if (newline == held.npos && name.empty()) return true;
    if (!may_be_name(newline == held.npos ? strip_right(name) : name, newline != held.npos))
      return false;
    if (newline == held.npos) return true;
    const std::string_view body = strip_left(held.substr(newline + 1));
    return body.starts_with(style_.call_begin) || style_.call_begin.starts_with(body);
  }

  bool may_be_name(std::string_view name, bool whole) const {
    if (whole && !is_tool_name(name)) return false;
    const auto known = [&](const std::string& tool) {
      return whole ? tool == name : tool.starts_with(name);
    };
    if (std::any_of(style_.tool_names.begin(), style_.tool_names.end(), known)) return true;
    return name.size() <= 64 && std::all_of(name.begin(), name.end(), is_name_byte);
  }

  std::string begin_plain() {
    plain_ = true;
    return stripped(std::exchange(held_, {}));
  }

  std::string end_part() {
    const std::string_view held = held_;
    const size_t newline = held.find('\n');
    if (!plain_ && newline != held.npos && may_be_call()) {
      auto arguments = style_.read_arguments(held.substr(newline + 1));
      if (arguments.has_value()) {
        calls_.push_back({std::string(strip(held.substr(0, newline))), *std::move(arguments)});
        held_.clear();
        return "";
      }
    }
    return begin_plain();
  }

  // The text without what Python's strip() takes off the whole: blanks wait for what follows them.
  // Parts of plain text are lines.
  std::string stripped(std::string_view text) {
    if (!begun_) text = strip_left(text);
    const std::string_view solid = strip_right(text);
    if (solid.empty()) {
      blanks_ += text;
      return "";
    }
    std::string out = begun_ ? std::exchange(blanks_, {}) : any_ ? "\n" : "";
    begun_ = any_ = true;
    blanks_ = text.substr(solid.size());
    return out += solid;
  }

  const GlmAnswerStyle style_;
  std::string held_;    // from the beginning of a part that may be a call
  bool plain_ = false;  // this part is none
  bool begun_ = false;  // some of this part was given out
  bool any_ = false;    // some of the answer was
  std::string blanks_;
};

class MarkedAnswer final : public AnswerReader {
 public:
  explicit MarkedAnswer(MarkedAnswerStyle style) : style_(std::move(style)) {}

  std::string push(std::string_view text) override {
    held_ += text;
    std::string out;
    while (inside_ ? end_call(out) : begin_call(out)) {
    }
    return out;
  }

  std::string special(int32_t id) override {
    if (style_.begin_id != id || inside_) return "";
    // As a text it could be part of what a model quotes; as a token it is a mark.
    std::string out = take_plain(held_.size());
    inside_ = true;
    mark_ = style_.begin;
    return out;
  }

  std::string finish() override {
    std::string out;
    if (inside_) {
      take_call(held_.size(), 0, out);
    } else {
      out = take_plain(held_.size());
    }
    if (calls_.empty()) out += blanks_;
    return out;
  }

 private:
  // Gives out `size` bytes of what is held; blanks wait, for before and after calls there are none.
  std::string take_plain(size_t size) {
    const std::string taken = held_.substr(0, size);
    held_.erase(0, size);
    const std::string_view text = drop_blanks_ ? strip_left(taken) : taken;
    const std::string_view solid = strip_right(text);
    if (solid.empty()) {
      blanks_ += text;
      return "";
    }
    drop_blanks_ = false;
    std::string out = std::exchange(blanks_, {});
    blanks_ = text.substr(solid.size());
    return out += solid;
  }

  // Whether a call begins in what is held.
  bool begin_call(std::string& out) {
    if (style_.brace_begins && !any_) {
      const std::string_view solid = strip_left(held_);
      if (solid.empty()) {
        out += take_plain(held_.size());
        return false;
      }
      any_ = true;
      if (solid[0] == '{') {
        inside_ = true;
        return true;
      }
    }
    const bool in_text = !style_.begin_id.has_value();
    const size_t found = in_text ? held_.find(style_.begin) : held_.npos;
    if (found != held_.npos) {
      out += take_plain(found);
      held_.erase(0, style_.begin.size());
      mark_ = style_.begin;
      inside_ = true;
      return true;
    }
    size_t size = held_.size();
    // What may be the beginning of a mark stays.
    const size_t longest = in_text ? std::min(size, style_.begin.size() - 1) : 0;
    size_t part = longest;
    while (part > 0 && !style_.begin.starts_with(std::string_view(held_).substr(size - part)))
      --part;
    out += take_plain(size - part);
    return false;
  }

  bool end_call(std::string& out) {
    if (style_.end.empty()) return false;
    const size_t from = searched_ < style_.end.size() ? 0 : searched_ - style_.end.size();
    const size_t found = held_.find(style_.end, from);
    searched_ = held_.size();
    if (found == held_.npos) return false;
    take_call(found, style_.end.size(), out);
    return true;
  }

  // What is held is a call of `size` bytes and a mark behind it, or else text.
  void take_call(size_t size, size_t mark, std::string& out) {
    std::vector<ToolCall> calls = style_.read(std::string_view(held_).substr(0, size));
    inside_ = false;
    searched_ = 0;
    const std::string raw = mark_ + held_.substr(0, size + mark);
    held_.erase(0, size + mark);
    if (calls.empty()) {
      out += std::exchange(blanks_, {}) + raw;
      drop_blanks_ = false;
      return;
    }
    calls_.insert(calls_.end(), calls.begin(), calls.end());
    blanks_.clear();
    drop_blanks_ = true;
  }

  const MarkedAnswerStyle style_;
  std::string held_;
  std::string blanks_;        // blanks that plain text ended with
  std::string mark_;          // that began the call
  size_t searched_ = 0;       // of held_, for the end of the call
  bool inside_ = false;       // a call
  bool any_ = false;          // something solid was seen
  bool drop_blanks_ = false;  // a call has just ended
};

}  // namespace

std::unique_ptr<AnswerReader> make_glm_answer(GlmAnswerStyle style) {
  return std::make_unique<GlmAnswer>(std::move(style));
}

std::unique_ptr<AnswerReader> make_marked_answer(MarkedAnswerStyle style) {
  return std::make_unique<MarkedAnswer>(std::move(style));
}

}  // namespace trireme
