// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/engine_load.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

namespace trireme {
namespace {

// Counts the tokens of all sequences of a run and notes when the timed part begins and ends.
class Run {
 public:
  Run(int sequences, int warm, int timed)
      : open_(sequences), first_(sequences * warm), last_(sequences * (warm + timed)) {}

  void token() {
    const std::lock_guard lock(mutex_);
    ++count_;
    if (count_ == first_) begin_ = Clock::now();
    if (count_ == last_) end_ = Clock::now();
  }
  void ended(const std::string& error) {
    const std::lock_guard lock(mutex_);
    if (!error.empty()) error_ = error;
    if (--open_ == 0) done_.notify_all();
  }
  // Tokens per second of the timed part, once all sequences have ended.
  double rate() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return open_ == 0; });
    if (!error_.empty()) throw Error(Code::kInternal, "the run failed: " + error_);
    return (last_ - first_) / std::chrono::duration<double>(end_ - begin_).count();
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  int open_;
  int first_, last_;
  int count_ = 0;
  Clock::time_point begin_, end_;
  std::string error_;
};

class CountingSink : public RequestSink {
 public:
  explicit CountingSink(Run& run) : run_(run) {}
  bool on_token(const OutputToken&) override {
    run_.token();
    return true;
  }
  void on_finished(FinishReason, std::optional<int32_t>) override { run_.ended(""); }
  void on_error(Code, const std::string& message) override { run_.ended(message); }

 private:
  Run& run_;
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
  Run run(load.sequences, load.warm, load.timed);
  for (int index = 0; index < load.sequences; ++index) {
    submit(job, run, index, load.prompt, load.warm + load.timed);
  }
  return run.rate();
}

double prefill_rate(Job& job, int32_t tokens) {
  Run run(1, 0, 1);
  const auto begin = Clock::now();
  submit(job, run, 0, tokens, 1);
  run.rate();
  return tokens / std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace trireme
