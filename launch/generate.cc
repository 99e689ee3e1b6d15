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

// One answer to a prompt as it grows. Written by the engine's thread, read by main's, both under
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

  ordered_json to_json(int index, int choice, const PreparedRequest& prepared) const {
    const std::lock_guard lock(board_.mutex);
    ordered_json line;
    line["index"] = index;
    if (prepared.n > 1) line["choice"] = choice;
    line["prompt_ids"] = prepared.request.prompt;
    line["output_ids"] = ids_;
    line["text"] = text_;
    line["finish_reason"] =
        finished_->finish_reason() == v1::FINISH_REASON_STOP ? "stop" : "length";
    if (prepared.request.sampling.logprobs > 0) {
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

std::vector<std::shared_ptr<Answer>> submit(const PreparedRequest& prepared, Board& board,
                                            const Tokenizer& tokenizer, Engine& engine) {
  std::vector<std::shared_ptr<Answer>> answers;
  std::vector<Request> requests;
  for (int32_t index = 0; index < prepared.n; ++index) {
    answers.push_back(std::make_shared<Answer>(board, tokenizer, prepared.options(index)));
    requests.push_back(prepared.answer(index));
    requests.back().sink = std::shared_ptr<RequestSink>(answers.back(), answers.back()->sink());
    answers.back()->start();
  }
  engine.submit(std::move(requests));
  return answers;
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

void print_json(const Answer& answer, int index, int32_t choice, const PreparedRequest& prepared,
                const std::string& where) {
  answer.wait(std::numeric_limits<size_t>::max());
  answer.check(where);
  std::cout << answer.to_json(index, choice, prepared) << std::endl;
}

// Of all prompts together; what prepare() refuses counts as one.
int32_t num_answers(const std::vector<GenerateItem>& items) {
  size_t count = 0;
  for (const GenerateItem& item : items) {
    const int32_t n = std::visit([](const auto& request) { return request.n(); }, item.request);
    count += static_cast<size_t>(std::clamp(n, 1, kMaxAnswers));
  }
  return static_cast<int32_t>(std::min<size_t>(count, std::numeric_limits<int32_t>::max()));
}

}  // namespace

int generate(const Options& options) {
  const std::vector<GenerateItem> items = read_items(options.generate);
  Options sized = options;
  // Nobody else asks: the queue holds them all.
  sized.serve.max_queue = num_answers(items);
  Board board;  // outlives the job, whose engine has the answers
  Job job(sized);
  const ServedModel model = job.served_model();
  // All of them before a weight is read: a bad line is found in the first second.
  std::vector<PreparedRequest> prepared;
  for (const GenerateItem& item : items) prepared.push_back(prepare_item(item, model));
  job.load([] { return false; });

  std::vector<std::vector<std::shared_ptr<Answer>>> answers;  // to each prompt
  for (const PreparedRequest& one : prepared) {
    answers.push_back(submit(one, board, model.tokenizer, job.engine()));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    for (int32_t choice = 0; choice < prepared[i].n; ++choice) {
      std::shared_ptr<Answer>& answer = answers[i][static_cast<size_t>(choice)];
      if (options.generate.json) {
        print_json(*answer, static_cast<int>(i), choice, prepared[i], items[i].where);
      } else {
        print_text(*answer, items[i].where);
      }
      answer.reset();
    }
  }
  if (!std::cout) throw Error(Code::kInternal, "cannot write the answers to stdout");
  return 0;
}

}  // namespace trireme
