// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/engine_load.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

namespace trireme {
namespace {

// Counts the tokens of all sequences. The clock runs while all answer: from when the last of them
// has its first `warm` tokens until the first one ends.
class Run {
 public:
  Run(int sequences, int32_t warm, int32_t tokens)
      : sequences_(sequences), warm_(warm), tokens_(tokens), open_(sequences) {}

  // nth: of its answer, from 1.
  void token(int32_t nth) {
    const std::lock_guard lock(mutex_);
    ++count_;
    if (nth == warm_ && ++warmed_ == sequences_) begin_ = {Clock::now(), count_};
    if (nth == tokens_ && end_.count == 0) end_ = {Clock::now(), count_};
  }
  void ended(const std::string& error) {
    const std::lock_guard lock(mutex_);
    if (!error.empty()) error_ = error;
    if (--open_ == 0) done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return open_ == 0; });
    if (!error_.empty()) throw Error(Code::kInternal, "the run failed: " + error_);
  }
  // Tokens per second, once all sequences have ended.
  double rate() {
    wait();
    if (begin_.count == 0 || end_.count <= begin_.count) {
      throw Error(Code::kInternal, "cannot time the run: an answer ended before all had begun");
    }
    return (end_.count - begin_.count) /
           std::chrono::duration<double>(end_.time - begin_.time).count();
  }

 private:
  struct Mark {
    Clock::time_point time;
    int64_t count = 0;  // of tokens by then
  };

  const int sequences_;
  const int32_t warm_, tokens_;
  std::mutex mutex_;
  std::condition_variable done_;
  int open_;
  int warmed_ = 0;
  int64_t count_ = 0;
  Mark begin_, end_;
  std::string error_;
};

class CountingSink : public RequestSink {
 public:
  explicit CountingSink(Run& run) : run_(run) {}
  bool on_token(const OutputToken&) override {
    run_.token(++count_);
    return true;
  }
  void on_finished(FinishReason, std::optional<int32_t>) override { run_.ended(""); }
  void on_error(Code, const std::string& message) override { run_.ended(message); }

 private:
  Run& run_;
  int32_t count_ = 0;
};

void submit(Job& job, Run& run, int index, int32_t prompt, int32_t tokens) {
  static std::atomic<int> next{0};
  Request request;
  request.id = std::to_string(next++);
  for (int32_t position = 0; position < prompt; ++position) {
    request.prompt.push_back(3 + (position * 37 + index * 101) % 400);
  }
  request.sampling.temperature = 0;
  request.max_tokens = tokens;
  request.sink = std::make_shared<CountingSink>(run);
  job.engine().submit(std::move(request));
}

}  // namespace

double decode_rate(Job& job, const DecodeLoad& load) {
  // Prompts that one micro-batch cannot hold begin one behind the other, and so would the ends.
  const int32_t lag = 1 + load.sequences * load.prompt / job.placement().max_batch_tokens();
  const int32_t tokens = load.warm + load.timed + lag;
  Run run(load.sequences, load.warm, tokens);
  for (int index = 0; index < load.sequences; ++index) {
    submit(job, run, index, load.prompt, tokens);
  }
  return run.rate();
}

double prefill_rate(Job& job, int32_t tokens) {
  Run run(1, 1, 1);
  const auto begin = Clock::now();
  submit(job, run, 0, tokens, 1);
  run.wait();
  return tokens / std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace trireme
