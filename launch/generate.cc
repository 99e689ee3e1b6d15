// SPDX-License-Identifier: Apache-2.0
#include "launch/generate.h"

#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>

#include "coordinator/generation.h"
#include "coordinator/validate.h"
#include "kernels/base/error.h"
#include "launch/generate_input.h"
#include "launch/job.h"

namespace trireme {
namespace {

using nlohmann::ordered_json;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// What the engine's thread tells the main thread.
struct Board {
  std::mutex mutex;
  std::condition_variable changed;
};

// The answer to one prompt as it grows. Written by the engine's thread, read by main's, both under
// the board's mutex.
class Answer final : public GenerationListener {
 public:
  Answer(Board& board, const Tokenizer& tokenizer, GenerationOptions options)
      : board_(board), generation_(tokenizer, std::move(options), *this) {}

  RequestSink* sink() { return &generation_; }
  void start() { start_ = Clock::now(); }

  // Waits for more than `seen` bytes of text, or the end.
  void wait(size_t seen) const {
    std::unique_lock lock(board_.mutex);
    board_.changed.wait(lock, [&] { return ended() || text_.size() > seen; });
  }
  // The text from byte `from` on; `more`: whether some may follow.
  std::string text_from(size_t from, bool& more) const {
    const std::lock_guard lock(board_.mutex);
    more = !ended();
    return text_.substr(from);
  }
  // Throws if it failed. REQUIRES: the end has come.
  void check(const std::string& where) const {
    const std::lock_guard lock(board_.mutex);
    if (error_) throw Error(error_->code(), where + ": " + error_->what());
  }

  ordered_json to_json(int index, const std::vector<int32_t>& prompt, bool logprobs) const {
    const std::lock_guard lock(board_.mutex);
    ordered_json line;
    line["index"] = index;
    line["prompt_ids"] = prompt;
    line["output_ids"] = ids_;
    line["text"] = text_;
    line["finish_reason"] =
        finished_->finish_reason() == v1::FINISH_REASON_STOP ? "stop" : "length";
    if (logprobs) {
      ordered_json& all = line["logprobs"] = ordered_json::array();
      for (const v1::TokenLogprobs& token : logprobs_) {
        ordered_json& best = all.emplace_back(ordered_json::array());
        for (const v1::Logprob& one : token.top()) {
          best.push_back({{"id", one.id()}, {"logprob", one.logprob()}});
        }
      }
    }
    line["usage"] = {{"prompt_tokens", finished_->usage().prompt_tokens()},
                     {"completion_tokens", finished_->usage().completion_tokens()}};
    line["timing"] = {{"ttft_ms", ttft_ms_}, {"total_ms", total_ms_}};
    return line;
  }

 private:
  bool ended() const { return finished_ || error_; }

  void on_delta(const v1::Delta& delta) override {
    const std::lock_guard lock(board_.mutex);
    if (ids_.empty()) ttft_ms_ = milliseconds_since(start_);
    ids_.insert(ids_.end(), delta.token_ids().begin(), delta.token_ids().end());
    logprobs_.insert(logprobs_.end(), delta.logprobs().begin(), delta.logprobs().end());
    text_ += delta.text();
    board_.changed.notify_all();
  }
  void on_finished(const v1::Finished& finished) override {
    const std::lock_guard lock(board_.mutex);
    finished_ = finished;
    total_ms_ = milliseconds_since(start_);
    board_.changed.notify_all();
  }
  void on_error(Code code, const std::string& message) override {
    const std::lock_guard lock(board_.mutex);
    error_.emplace(code, message);
    board_.changed.notify_all();
  }

  Board& board_;
  Clock::time_point start_;
  std::vector<int32_t> ids_;
  std::vector<v1::TokenLogprobs> logprobs_;
  std::string text_;
  double ttft_ms_ = 0, total_ms_ = 0;
  std::optional<v1::Finished> finished_;
  std::optional<Error> error_;
  Generation generation_;
};

PreparedRequest prepare_item(const GenerateItem& item, const ServedModel& model) {
  try {
    return std::visit([&](const auto& request) { return prepare(request, model); }, item.request);
  } catch (const Error& error) {  // which of the prompts it was
    throw Error(error.code(), item.where + ": " + error.what());
  }
}

std::shared_ptr<Answer> submit(PreparedRequest prepared, Board& board, const Tokenizer& tokenizer,
                               Engine& engine) {
  Request& request = prepared.request;
  GenerationOptions options;
  options.num_prompt = static_cast<int32_t>(request.prompt.size());
  options.stop_ids = request.stop_ids;
  options.stop = std::move(prepared.stop);
  options.logprobs = request.sampling.logprobs > 0;
  const auto answer = std::make_shared<Answer>(board, tokenizer, std::move(options));
  request.sink = std::shared_ptr<RequestSink>(answer, answer->sink());
  answer->start();
  engine.submit(std::move(request));
  return answer;
}

void print_text(const Answer& answer, const std::string& where) {
  size_t printed = 0;
  for (bool more = true; more;) {
    answer.wait(printed);
    const std::string text = answer.text_from(printed, more);
    printed += text.size();
    std::cout << text << std::flush;
  }
  std::cout << std::endl;
  answer.check(where);
}

void print_json(const Answer& answer, int index, const PreparedRequest& prepared,
                const std::string& where) {
  answer.wait(std::numeric_limits<size_t>::max());
  answer.check(where);
  std::cout << answer.to_json(index, prepared.request.prompt,
                              prepared.request.sampling.logprobs > 0)
            << std::endl;
}

}  // namespace

int generate(const Options& options) {
  const std::vector<GenerateItem> items = read_items(options.generate);
  Options sized = options;
  // Nobody else asks: the queue holds them all.
  sized.serve.max_queue =
      static_cast<int32_t>(std::min<size_t>(items.size(), std::numeric_limits<int32_t>::max()));
  Board board;  // outlives the job, whose engine has the answers
  Job job(sized);
  const ServedModel model{job.model(), job.tokenizer(), job.chat_format(),
                          job.placement().context()};
  // All of them before a weight is read: a bad line is found in the first second.
  std::vector<PreparedRequest> prepared;
  for (const GenerateItem& item : items) prepared.push_back(prepare_item(item, model));
  job.load([] { return false; });

  std::vector<std::shared_ptr<Answer>> answers;
  for (const PreparedRequest& one : prepared) {
    answers.push_back(submit(one, board, job.tokenizer(), job.engine()));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (options.generate.json) {
      print_json(*answers[i], static_cast<int>(i), prepared[i], items[i].where);
    } else {
      print_text(*answers[i], items[i].where);
    }
    answers[i].reset();
  }
  if (!std::cout) throw Error(Code::kInternal, "cannot write the answers to stdout");
  return 0;
}

}  // namespace trireme
