// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/base/check.h"
#include "topology/cgroup.h"
#include "topology/probe.h"
#include "worker/comm/local.h"
#include "worker/comm/local_hub.h"

namespace trireme {
namespace {

// As over TCP, where the connection's thread sends them.
constexpr std::chrono::milliseconds kHeartbeat{200};
// With more workers than cores, who spins keeps the one that it waits for from its core.
constexpr std::chrono::microseconds kSpin{100};

std::chrono::microseconds spin_of(int num_workers) {
  const int at_once = cgroup_limits().threads(static_cast<int>(allowed_cpus().size()));
  return num_workers <= at_once ? kSpin : std::chrono::microseconds(0);
}

// One thread tells the progress of all workers.
class LocalChannel final : public Channel {
 public:
  explicit LocalChannel(std::shared_ptr<LocalHub> hub) : hub_(std::move(hub)) {
    pulse_ = std::thread([this] { run(); });
  }
  ~LocalChannel() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    end_.notify_one();
    pulse_.join();
    hub_->close_all();
  }
  void send(int rank, const ToWorker& message) override { hub_->send(rank, message); }
  std::optional<ChannelEvent> poll() override { return hub_->poll(); }
  void set_wake(std::function<void()> wake) override { hub_->set_wake(std::move(wake)); }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!end_.wait_for(lock, kHeartbeat, [this] { return ending_; })) {
      lock.unlock();
      hub_->beat();
      lock.lock();
    }
  }

  const std::shared_ptr<LocalHub> hub_;
  std::mutex mutex_;
  std::condition_variable end_;
  bool ending_ = false;  // guarded by mutex_
  std::thread pulse_;
};

class LocalWorkerChannel final : public WorkerChannel {
 public:
  LocalWorkerChannel(std::shared_ptr<LocalHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {
    hub_->open(rank_, cancellation_, progress_);
  }
  ~LocalWorkerChannel() override { hub_->close(rank_); }

  std::optional<ToWorker> receive(std::chrono::milliseconds timeout) override {
    return hub_->inbox(rank_).receive(timeout);
  }

  void send(const FromWorker& message) override {
    hub_->post({rank_, ChannelEvent::Kind::kMessage, message, ""});
  }

  const std::shared_ptr<Progress>& progress() override { return progress_; }
  Cancellation& cancellation() override { return cancellation_; }

 private:
  const std::shared_ptr<LocalHub> hub_;
  const int rank_;
  Cancellation cancellation_;
  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
};

}  // namespace

LocalHub::LocalHub(int num_workers) : spin_(spin_of(num_workers)), workers_(num_workers) {
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

void LocalHub::beat() {
  for (size_t index = 0; index < workers_.size(); ++index) {
    std::shared_ptr<const Progress> progress;
    {
      const std::lock_guard lock(mutex_);
      progress = workers_[index].progress;
    }
    if (progress == nullptr) continue;
    ChannelEvent event{static_cast<int>(index) + 1, ChannelEvent::Kind::kMessage, {}, ""};
    *event.message.mutable_heartbeat() = progress->heartbeat();
    post(std::move(event));
  }
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

void LocalHub::open(int rank, Cancellation& cancellation,
                    std::shared_ptr<const Progress> progress) {
  check_rank(rank);
  const std::lock_guard lock(mutex_);
  Worker& worker = workers_[rank - 1];
  CHECK(worker.cancellation == nullptr && !worker.gone, "one channel per worker");
  worker.cancellation = &cancellation;
  worker.progress = std::move(progress);
  if (closed_) cancellation.cancel("the coordinator has gone");
}

void LocalHub::close(int rank) {
  {
    const std::lock_guard lock(mutex_);
    workers_[rank - 1].cancellation = nullptr;
    workers_[rank - 1].progress = nullptr;
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
