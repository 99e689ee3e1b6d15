// SPDX-License-Identifier: Apache-2.0
// An engine with a channel whose other end is the test, driven by tick(): no threads, no time.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine.h"

namespace trireme {

class FakeChannel : public Channel {
 public:
  struct Sent {
    int rank;
    ToWorker message;
  };

  void send(int rank, const ToWorker& message) override {
    const std::lock_guard lock(mutex_);
    sent_.push_back({rank, message});
    sent_more_.notify_all();
  }
  std::optional<ChannelEvent> poll() override {
    const std::lock_guard lock(mutex_);
    if (events_.empty()) return std::nullopt;
    ChannelEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  void set_wake(std::function<void()> wake) override { wake_ = std::move(wake); }

  void report(ChannelEvent event) {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    wake_();
  }
  void report(int rank, ChannelEvent::Kind kind, const std::string& reason) {
    report({rank, kind, {}, reason});
  }
  void report_failed(int rank, Code code, const std::string& message) {
    ChannelEvent event{rank, ChannelEvent::Kind::kMessage, {}, ""};
    event.message.mutable_failed()->set_code(static_cast<int>(code));
    event.message.mutable_failed()->set_message(message);
    report(std::move(event));
  }
  void report_result(int rank, const MicroBatchResult& result) {
    ChannelEvent event{rank, ChannelEvent::Kind::kMessage, {}, ""};
    *event.message.mutable_result() = result;
    report(std::move(event));
  }

  // The messages since the last call.
  std::vector<Sent> take_sent() {
    const std::lock_guard lock(mutex_);
    return std::exchange(sent_, {});
  }
  std::vector<Sent> wait_sent(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    sent_more_.wait_for(lock, timeout, [this] { return !sent_.empty(); });
    return std::exchange(sent_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable sent_more_;
  std::vector<Sent> sent_;
  std::deque<ChannelEvent> events_;
  std::function<void()> wake_;
};

struct RecordingSink : RequestSink {
  bool on_token(const OutputToken& token) override {
    tokens.push_back(token.id);
    logprobs = token.logprobs;
    return tokens.size() < enough;
  }
  void on_finished(FinishReason reason, std::optional<int32_t> stop_id) override {
    end = reason == FinishReason::kStop ? "stop" : "length";
    if (stop_id) end += " " + std::to_string(*stop_id);
  }
  void on_error(Code code, const std::string& message) override {
    end = code_name(code);
    error = message;
  }
  std::vector<int32_t> tokens;
  std::vector<TokenScore> logprobs;
  size_t enough = SIZE_MAX;
  std::string end, error;
};

// The result with this token for everyone.
inline MicroBatchResult answer(const MicroBatch& batch, int32_t token) {
  MicroBatchResult result;
  result.set_id(batch.id());
  for (const SequenceChunk& chunk : batch.chunks()) {
    if (!chunk.sample()) continue;
    SampledToken& drawn = *result.add_tokens();
    drawn.set_sequence(chunk.sequence());
    drawn.set_token(token);
    for (int32_t i = 0; i < chunk.draw().logprobs(); ++i) drawn.add_logprobs()->set_id(i);
  }
  return result;
}

// Two replicas of two stages: ranks 1, 2 and 3, 4 on hosts a, b, a, b; rank 5 is a spare.
class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    for (int rank = 1; rank <= 5; ++rank) {
      RankInfo& info = *topology_.add_ranks();
      info.set_rank(rank);
      info.set_host(rank % 2 == 1 ? "a" : "b");
    }
    options_.vocab_size = 100;
    options_.max_queue = 8;
    make(2);
  }

  void make(int num_replicas) {
    engine_.reset();
    channel_.take_sent();
    placement_.Clear();
    for (int replica = 0, rank = 1; replica < num_replicas; ++replica) {
      ReplicaSpec& spec = *placement_.add_replicas();
      for (int stage = 0; stage < 2; ++stage) spec.add_stages()->add_shards()->set_rank(rank++);
    }
    placement_.set_block_size(4);
    placement_.set_num_blocks(16);
    placement_.set_max_sequences(4);
    placement_.set_max_batch_tokens(32);
    placement_.set_context(40);
    engine_ = std::make_unique<Engine>(topology_, placement_, channel_, options_);
  }

  std::shared_ptr<RecordingSink> submit(const std::string& id, int32_t num_prompt = 3,
                                        int32_t max_tokens = 10) {
    Request request = this->request(id, num_prompt, max_tokens);
    auto sink = std::static_pointer_cast<RecordingSink>(request.sink);
    engine_->submit(std::move(request));
    return sink;
  }
  Request request(const std::string& id, int32_t num_prompt = 3, int32_t max_tokens = 10) {
    Request result;
    result.id = id;
    result.prompt.assign(num_prompt, 1);
    result.max_tokens = max_tokens;
    result.sink = std::make_shared<RecordingSink>();
    return result;
  }

  // Those of one request, and where they go.
  std::pair<std::vector<std::shared_ptr<RecordingSink>>, std::vector<Request>> answers(
      const std::string& id, int count) {
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    std::vector<Request> requests;
    for (int index = 0; index < count; ++index) {
      requests.push_back(request(id));
      requests.back().index = index;
      sinks.push_back(std::static_pointer_cast<RecordingSink>(requests.back().sink));
    }
    return {std::move(sinks), std::move(requests)};
  }

  void turn() {
    while (engine_->tick(now_)) {
    }
  }
  // Every rank that got a micro-batch, in order; reporters answer.
  std::vector<int> answer_all(int32_t token) {
    std::vector<int> ranks;
    for (const auto& [rank, message] : channel_.take_sent()) {
      if (!message.has_micro_batch()) continue;
      ranks.push_back(rank);
      if (rank % 2 == 0) channel_.report_result(rank, answer(message.micro_batch(), token));
    }
    turn();
    return ranks;
  }
  std::string state(int rank) { return engine_->health().ranks(rank - 1).state(); }
  std::vector<int> abandoned() {
    std::vector<int> ranks;
    for (const auto& [rank, message] : channel_.take_sent()) {
      if (message.has_abandon()) ranks.push_back(rank);
    }
    return ranks;
  }
  template <typename Call>
  void expect_error(Code code, const std::string& part, Call call) {
    try {
      call();
      ADD_FAILURE() << "no error; expected " << code_name(code);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  Topology topology_;
  Placement placement_;
  EngineOptions options_;
  FakeChannel channel_;
  std::unique_ptr<Engine> engine_;
  Clock::time_point now_{std::chrono::hours(1)};
};

}  // namespace trireme
