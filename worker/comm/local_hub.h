// SPDX-License-Identifier: Apache-2.0
// What ranks that are threads share: mailboxes of each group for tensors, queues for messages.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "worker/comm/channel.h"
#include "worker/comm/host_communicator.h"
#include "worker/comm/inbox.h"

namespace trireme {

// Wakes one thread that waits for something to change. No ring between count() and sleep() is lost.
class Doorbell {
 public:
  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  void ring() {
    {
      const std::lock_guard lock(mutex_);
      count_.fetch_add(1, std::memory_order_release);
    }
    bell_.notify_one();
  }
  // Until the count differs from `seen`, at most for `timeout`.
  void sleep(uint64_t seen, std::chrono::microseconds timeout) {
    std::unique_lock lock(mutex_);
    bell_.wait_for(lock, timeout, [&] { return count() != seen; });
  }

 private:
  std::atomic<uint64_t> count_{0};
  std::mutex mutex_;
  std::condition_variable bell_;
};

// Messages from one rank of a group to another, in a ring; counted, so that an old message is not
// mistaken for a new one in its place. Two sends and one of a collective may be on their way at
// once.
struct Mailbox {
  static constexpr uint64_t kCapacity = 4;
  std::array<std::span<const std::byte>, kCapacity>
      ring;                         // staging, which lives as long as the group
  std::atomic<uint64_t> posted{0};  // written by the sender
  std::atomic<uint64_t> taken{0};   // written by the receiver
};

struct LocalGroup {
  explicit LocalGroup(std::span<const int> members)
      : ranks(members.begin(), members.end()),
        joined(members.size()),
        staging(members.size()),
        doorbells(members.size()),
        mailboxes(members.size() * members.size()) {
    for (auto& s : staging) s = HostCommunicator::make_staging(static_cast<int>(members.size()));
  }
  Mailbox& mailbox(int from, int to) { return mailboxes[from * ranks.size() + to]; }

  const std::vector<int> ranks;
  std::vector<bool> joined;  // guarded by the hub's mutex
  std::vector<std::shared_ptr<Staging>> staging;
  std::vector<Doorbell> doorbells;
  std::vector<Mailbox> mailboxes;
};

class LocalHub {
 public:
  explicit LocalHub(int num_workers);

  // The group of this list and tag, made by the first member that asks. Lives until all have joined
  // and the last has dropped it.
  std::shared_ptr<LocalGroup> join(std::span<const int> ranks, int tag, int index);

  // ---- the coordinator's side of the messages ----
  void send(int rank, const ToWorker& message);
  std::optional<ChannelEvent> poll();
  void set_wake(std::function<void()> wake);
  void close_all();  // the coordinator has gone
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // How long a worker keeps its core while it waits for another one.
  std::chrono::microseconds spin() const { return spin_; }

  // ---- a worker's side ----
  void open(int rank, Cancellation& cancellation, std::shared_ptr<const Progress> progress);
  void close(int rank);  // the worker has gone
  Inbox& inbox(int rank) { return workers_[rank - 1].inbox; }
  void post(ChannelEvent event);
  // Posts a heartbeat of every worker that is there.
  void beat();

 private:
  struct Worker {
    Inbox inbox;
    // guarded by mutex_
    Cancellation* cancellation = nullptr;  // null while the worker is not there
    std::shared_ptr<const Progress> progress;
    bool gone = false;
  };

  void check_rank(int rank) const;

  const std::chrono::microseconds spin_;
  std::vector<Worker> workers_;  // of rank 1, 2, …
  std::atomic<bool> closed_{false};
  std::mutex mutex_;
  // guarded by mutex_
  std::map<int, std::weak_ptr<LocalGroup>> groups_;  // by tag
  std::map<int, std::shared_ptr<LocalGroup>>
      forming_groups_;  // those that some have not joined yet
  std::deque<ChannelEvent> events_;
  // A mutex of its own: held during the call, so that set_wake(nullptr) ends all calls.
  std::mutex wake_mutex_;
  std::function<void()> wake_;
};

}  // namespace trireme
