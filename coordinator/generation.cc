// SPDX-License-Identifier: Apache-2.0
#include "coordinator/generation.h"

#include <algorithm>
#include <utility>

#include "coordinator/tokenizer/jinja/json.h"

namespace trireme {

StopStrings::StopStrings(std::span<const std::string> stops) {
  patterns_.reserve(stops.size());
  for (const std::string& stop : stops) {
    if (stop.empty()) {
      throw Error(Code::kInvalidArgument,
                  "cannot stop at an empty string: give each stop string at least one character");
    }
    Pattern pattern{stop, std::vector<size_t>(stop.size() + 1, 0), 0};
    // The pattern, run over its own text from the second byte on, meets its own borders.
    for (size_t end = 2; end <= stop.size(); ++end) {
      advance(pattern, stop[end - 1]);
      pattern.fallback[end] = pattern.length;
    }
    pattern.length = 0;
    patterns_.push_back(std::move(pattern));
  }
}

void StopStrings::advance(Pattern& pattern, char c) {
  while (pattern.length > 0 && pattern.text[pattern.length] != c) {
    pattern.length = pattern.fallback[pattern.length];
  }
  if (pattern.text[pattern.length] == c) ++pattern.length;
}

std::string StopStrings::push(std::string_view text, bool counts) {
  if (matched_ != nullptr) return {};
  if (patterns_.empty()) return std::string(text);
  size_t longest_prefix = 0;
  for (const char c : text) {
    held_ += c;
    longest_prefix = 0;
    for (Pattern& pattern : patterns_) {
      advance(pattern, c);
      if (pattern.length == pattern.text.size()) {
        if (!counts) {
          pattern.length = pattern.fallback[pattern.length];
        } else if (matched_ == nullptr || pattern.text.size() > matched_->size()) {
          matched_ = &pattern.text;
        }
      }
      longest_prefix = std::max(longest_prefix, pattern.length);
    }
    if (matched_ != nullptr) {
      held_.resize(held_.size() - matched_->size());
      return std::exchange(held_, {});
    }
  }
  // An empty text changes nothing: what is held stays so.
  if (text.empty()) return {};
  std::string certain = held_.substr(0, held_.size() - longest_prefix);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

Generation::Generation(const Tokenizer& tokenizer, GenerationOptions options,
                       GenerationListener& listener)
    : options_(std::move(options)),
      listener_(listener),
      tokenizer_(tokenizer),
      decoder_(tokenizer),
      stops_(options_.stop) {}

std::string Generation::push_text(std::string_view text) {
  return stops_.push(text, num_output_ > options_.min_tokens);
}

v1::Delta Generation::new_delta() const {
  v1::Delta delta;
  delta.set_index(options_.index);
  return delta;
}

std::string Generation::finish_text() {
  if (text_ended_) return {};
  text_ended_ = true;
  std::string rest = decoder_.finish();
  if (options_.answer != nullptr) {
    rest = options_.answer->push(rest);
    rest += options_.answer->finish();
  }
  std::string text = push_text(rest);
  text += stops_.finish();
  return text;
}

std::string Generation::plain_text(int32_t id) {
  std::string text = decoder_.push(id);
  if (options_.answer == nullptr) return text;
  text = options_.answer->push(text);
  if (tokenizer_.is_special(id)) text += options_.answer->special(id);
  return text;
}

bool Generation::on_token(const OutputToken& token) {
  ++num_output_;
  const bool is_stop_id = std::find(options_.stop_ids.begin(), options_.stop_ids.end(), token.id) !=
                          options_.stop_ids.end();
  v1::Delta delta = new_delta();
  delta.add_token_ids(token.id);
  delta.set_text(is_stop_id ? finish_text() : push_text(plain_text(token.id)));
  if (options_.logprobs) {
    v1::TokenLogprobs& top = *delta.add_logprobs();
    for (const TokenScore& score : token.logprobs) {
      v1::Logprob& logprob = *top.add_top();
      logprob.set_id(score.id);
      logprob.set_logprob(score.logprob);
    }
  }
  listener_.on_delta(delta);
  return stops_.matched() == nullptr;
}

void Generation::on_finished(FinishReason reason, std::optional<int32_t> stop_id) {
  const std::string rest = finish_text();
  if (!rest.empty()) {
    v1::Delta delta = new_delta();
    delta.set_text(rest);
    listener_.on_delta(delta);
  }
  v1::Finished finished;
  finished.set_index(options_.index);
  finished.set_finish_reason(reason == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                           : v1::FINISH_REASON_LENGTH);
  if (stops_.matched() != nullptr) {
    // Also where only the end of the text, a broken character shown as U+FFFD, made it whole.
    finished.set_finish_reason(v1::FINISH_REASON_STOP);
    finished.set_matched_stop(*stops_.matched());
  } else if (stop_id) {
    finished.set_matched_stop(std::to_string(*stop_id));
  }
  if (options_.answer != nullptr) {
    for (const ToolCall& call : options_.answer->calls()) {
      v1::ToolCall& said = *finished.add_tool_calls();
      said.set_name(call.name);
      said.set_arguments_json(jinja::to_json(call.arguments));
      if (!call.id.empty()) said.set_id(call.id);
    }
  }
  finished.mutable_usage()->set_prompt_tokens(options_.num_prompt);
  finished.mutable_usage()->set_completion_tokens(num_output_);
  listener_.on_finished(finished);
}

void Generation::on_error(Code code, const std::string& message) {
  listener_.on_error(code, message);
}

}  // namespace trireme
