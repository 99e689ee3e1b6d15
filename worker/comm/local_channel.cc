// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <utility>

#include "kernels/base/check.h"
#include "worker/comm/local.h"
#include "worker/comm/local_hub.h"

namespace trireme {
namespace {

// As over TCP, where the connection's thread sends them.
constexpr std::chrono::milliseconds kHeartbeat{200};

class LocalChannel final : public Channel {
 public:
  explicit LocalChannel(std::shared_ptr<LocalHub> hub) : hub_(std::move(hub)) {}
  ~LocalChannel() override { hub_->close_all(); }
  void send(int rank, const ToWorker& message) override { hub_->send(rank, message); }
  std::optional<ChannelEvent> poll() override { return hub_->poll(); }
  void set_wake(std::function<void()> wake) override { hub_->set_wake(std::move(wake)); }

 private:
  const std::shared_ptr<LocalHub> hub_;
};

class LocalWorkerChannel final : public WorkerChannel {
 public:
  LocalWorkerChannel(std::shared_ptr<LocalHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {
    hub_->open(rank_, cancellation_);
  }
  ~LocalWorkerChannel() override { hub_->close(rank_); }

  std::optional<ToWorker> receive(std::chrono::milliseconds timeout) override {
    return hub_->inbox(rank_).receive(timeout);
  }

  void send(const FromWorker& message) override {
    hub_->post({rank_, ChannelEvent::Kind::kMessage, message, ""});
  }

  // A thread needs no sign of life, only its progress is of interest.
  void set_progress(uint64_t micro_batch) override {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_heartbeat_ < kHeartbeat) return;
    last_heartbeat_ = now;
    FromWorker message;
    message.mutable_heartbeat()->set_micro_batch(micro_batch);
    send(message);
  }

  Cancellation& cancellation() override { return cancellation_; }

 private:
  const std::shared_ptr<LocalHub> hub_;
  const int rank_;
  Cancellation cancellation_;
  std::chrono::steady_clock::time_point last_heartbeat_{};
};

}  // namespace

LocalHub::LocalHub(int num_workers) : workers_(num_workers) {
  CHECK(num_workers >= 0, "a negative number of workers");
}

void LocalHub::check_rank(int rank) const {
  CHECK(rank >= 1 && rank <= static_cast<int>(workers_.size()), "workers have ranks from 1");
}

void LocalHub::send(int rank, const ToWorker& message) {
  check_rank(rank);
  const std::lock_guard lock(mutex_);
  Worker& worker = workers_[rank - 1];
  if (worker.gone) return;
  if (message.has_abandon() && worker.cancellation != nullptr) {
    worker.cancellation->cancel(message.abandon().reason());
  }
  // After the cancellation: a worker that has read the message may reset it.
  worker.inbox.push(message);
}

std::optional<ChannelEvent> LocalHub::poll() {
  const std::lock_guard lock(mutex_);
  if (events_.empty()) return std::nullopt;
  std::optional<ChannelEvent> event(std::move(events_.front()));
  events_.pop_front();
  return event;
}

void LocalHub::set_wake(std::function<void()> wake) {
  const std::lock_guard lock(wake_mutex_);
  wake_ = std::move(wake);
}

void LocalHub::post(ChannelEvent event) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    events_.push_back(std::move(event));
  }
  const std::lock_guard lock(wake_mutex_);
  if (wake_) wake_();
}

void LocalHub::close_all() {
  const std::string reason = "the coordinator has gone";
  set_wake(nullptr);
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (Worker& worker : workers_) {
    if (worker.cancellation != nullptr) worker.cancellation->cancel(reason);
    worker.inbox.close(reason);
  }
}

void LocalHub::open(int rank, Cancellation& cancellation) {
  check_rank(rank);
  const std::lock_guard lock(mutex_);
  Worker& worker = workers_[rank - 1];
  CHECK(worker.cancellation == nullptr && !worker.gone, "one channel per worker");
  worker.cancellation = &cancellation;
  if (closed_) cancellation.cancel("the coordinator has gone");
}

void LocalHub::close(int rank) {
  {
    const std::lock_guard lock(mutex_);
    workers_[rank - 1].cancellation = nullptr;
    workers_[rank - 1].gone = true;
  }
  post({rank, ChannelEvent::Kind::kClosed, {}, "the worker's thread has ended"});
}

std::unique_ptr<Channel> make_local_channel(std::shared_ptr<LocalHub> hub) {
  return std::make_unique<LocalChannel>(std::move(hub));
}

std::unique_ptr<WorkerChannel> make_local_worker_channel(std::shared_ptr<LocalHub> hub, int rank) {
  return std::make_unique<LocalWorkerChannel>(std::move(hub), rank);
}

}  // namespace trireme
