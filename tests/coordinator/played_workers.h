// SPDX-License-Identifier: Apache-2.0
// Workers that are played: a thread answers each micro-batch with tokens that follow from the
// sequence alone, so company cannot change them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/tokenizer/tokenizer.h"
#include "kernels/base/error.h"
#include "worker/comm/channel.h"

namespace trireme {

using std::chrono::milliseconds;

// Two stages, ranks 1 and 2.
class PlayedWorkers : public Channel {
 public:
  static constexpr int kReporter = 2;

  explicit PlayedWorkers(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    thread_ = std::thread([this] { run(); });
  }
  ~PlayedWorkers() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void send(int rank, const ToWorker& message) override {
    if (rank != kReporter || !message.has_micro_batch()) return;
    {
      const std::lock_guard lock(mutex_);
      batches_.push_back(message.micro_batch());
    }
    changed_.notify_all();
  }
  std::optional<ChannelEvent> poll() override {
    const std::lock_guard lock(mutex_);
    if (events_.empty()) return std::nullopt;
    ChannelEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  void set_wake(std::function<void()> wake) override {
    const std::lock_guard lock(mutex_);
    wake_ = std::move(wake);
  }

  // Each micro-batch takes at least so long.
  void set_step(milliseconds step) {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }
  // While it is held nothing is answered.
  void hold(bool held) {
    {
      const std::lock_guard lock(mutex_);
      held_ = held;
    }
    changed_.notify_all();
  }
  // The next tokens, of the one request that runs; and what it is fed is noted anew.
  void say(std::vector<int32_t> ids) {
    const std::lock_guard lock(mutex_);
    said_.assign(ids.begin(), ids.end());
    fed_.clear();
  }
  std::vector<int32_t> fed() {
    const std::lock_guard lock(mutex_);
    return fed_;
  }
  void report(int rank, ChannelEvent::Kind kind) { report({rank, kind, {}, "it was killed"}); }

  // The token after `token` at `position`: ordinary ids, among them halves of characters.
  int32_t next_token(int32_t token, int32_t position) const {
    int32_t id = (token * 31 + position * 17 + 7) % tokenizer_.size();
    while (tokenizer_.is_special(id)) id = (id + 1) % tokenizer_.size();
    return id;
  }
  std::vector<int32_t> continuation(const std::vector<int32_t>& prompt, int count) const {
    std::vector<int32_t> ids;
    int32_t last = prompt.back();
    for (int i = 0; i < count; ++i) {
      last = next_token(last, static_cast<int32_t>(prompt.size()) + i - 1);
      ids.push_back(last);
    }
    return ids;
  }

 private:
  void report(ChannelEvent event) {
    std::function<void()> wake;
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
      wake = wake_;
    }
    wake();
  }

  // REQUIRES: mutex_ is held.
  MicroBatchResult answer(const MicroBatch& batch) {
    MicroBatchResult result;
    result.set_id(batch.id());
    for (const SequenceChunk& chunk : batch.chunks()) {
      fed_.insert(fed_.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      if (!chunk.sample()) continue;
      const int last = chunk.token_ids_size() - 1;
      SampledToken& token = *result.add_tokens();
      token.set_sequence(chunk.sequence());
      // As continuation() says; with a temperature of its own the seed counts too.
      const bool seeded = chunk.draw().temperature() != 1;
      const int32_t seed = seeded ? static_cast<int32_t>(chunk.draw().seed() % 1000) : 0;
      token.set_token(next_token(chunk.token_ids(last), chunk.position() + last + seed));
      if (!said_.empty()) {
        token.set_token(said_.front());
        said_.pop_front();
      }
      for (int32_t i = 0; i < chunk.draw().logprobs(); ++i) {
        TokenLogprob& logprob = *token.add_logprobs();
        logprob.set_id(i);
        logprob.set_logprob(-static_cast<float>(i) - 0.5f);
      }
    }
    return result;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || (!held_ && !batches_.empty()); });
      if (ending_) return;
      const MicroBatch batch = std::move(batches_.front());
      batches_.pop_front();
      const milliseconds step = step_;
      lock.unlock();
      std::this_thread::sleep_for(step);
      ChannelEvent event{kReporter, ChannelEvent::Kind::kMessage, {}, ""};
      lock.lock();
      *event.message.mutable_result() = answer(batch);
      lock.unlock();
      report(std::move(event));
      lock.lock();
    }
  }

  const Tokenizer& tokenizer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<MicroBatch> batches_;
  std::deque<ChannelEvent> events_;
  std::deque<int32_t> said_;
  std::vector<int32_t> fed_;
  std::function<void()> wake_;
  milliseconds step_{0};
  bool held_ = false;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace trireme
