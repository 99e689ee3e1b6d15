// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/local.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/base/brief_wait.h"
#include "kernels/base/check.h"
#include "worker/comm/local_hub.h"

namespace trireme {
namespace {

// Setting a Cancellation rings no doorbell: a sleeper looks for it this often.
constexpr std::chrono::microseconds kLook{500};

class LocalCommunicator final : public HostCommunicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalHub> hub, std::shared_ptr<LocalGroup> group, int rank,
                    Cancellation& cancellation, std::shared_ptr<Progress> progress)
      : HostCommunicator(rank, static_cast<int>(group->ranks.size()), group->staging[rank],
                         std::move(progress)),
        hub_(std::move(hub)),
        group_(std::move(group)),
        cancellation_(cancellation),
        operations_(num_operations()) {}

 private:
  struct Operation {
    bool pending = false;
    bool receive = false;
    int peer = 0;
    uint64_t sequence = 0;  // number of the message in its mailbox
    std::span<std::byte> incoming;
  };

  void start_send(int operation, std::span<const std::byte> bytes, int to) override {
    Mailbox& mailbox = group_->mailbox(rank(), to);
    const uint64_t sequence = mailbox.posted.load(std::memory_order_relaxed);
    CHECK(!operations_[operation].pending && sequence - mailbox.taken < Mailbox::kCapacity,
          "a communicator was used after its end");
    mailbox.ring[sequence % Mailbox::kCapacity] = bytes;
    mailbox.posted.store(sequence + 1, std::memory_order_release);
    group_->doorbells[to].ring();
    operations_[operation] = {true, false, to, sequence, {}};
  }

  // One receive per peer is in flight at a time, so it is the next message that it waits for.
  void start_recv(int operation, std::span<std::byte> bytes, int from) override {
    CHECK(!operations_[operation].pending, "a communicator was used after its end");
    const uint64_t sequence = group_->mailbox(from, rank()).taken.load(std::memory_order_relaxed);
    operations_[operation] = {true, true, from, sequence, bytes};
  }

  void wait(std::span<const int> operations) override {
    Doorbell& doorbell = group_->doorbells[rank()];
    uint64_t seen = doorbell.count();
    bool told = false;
    while (!advance(operations)) {
      BriefWait brief;
      while (doorbell.count() == seen && brief.lasted() < hub_->spin()) brief.pause();
      if (doorbell.count() == seen) {
        tell_peers(operations);
        told = true;
      }
      while (doorbell.count() == seen) {
        cancellation_.throw_if_cancelled();
        // A reset() may have come after the coordinator went.
        if (hub_->closed()) throw Error(Code::kCancelled, "the coordinator has gone");
        doorbell.sleep(seen, kLook);
      }
      seen = doorbell.count();
    }
    if (told) progress().wait_for({});
  }

  void tell_peers(std::span<const int> operations) {
    std::vector<int> peers;
    for (const int index : operations) {
      const Operation& operation = operations_[index];
      if (operation.pending) peers.push_back(group_->ranks[operation.peer]);
    }
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    progress().step();  // something came, or the wait just began
    progress().wait_for(peers);
  }

  // Takes what has come; true when all operations are done.
  bool advance(std::span<const int> operations) {
    bool all = true;
    for (const int index : operations) {
      Operation& operation = operations_[index];
      if (operation.pending) {
        operation.pending = operation.receive ? !take(operation) : !taken(operation);
      }
      all = all && !operation.pending;
    }
    return all;
  }

  bool taken(const Operation& operation) {
    const Mailbox& mailbox = group_->mailbox(rank(), operation.peer);
    return mailbox.taken.load(std::memory_order_acquire) > operation.sequence;
  }

  bool take(const Operation& operation) {
    Mailbox& mailbox = group_->mailbox(operation.peer, rank());
    if (mailbox.posted.load(std::memory_order_acquire) <= operation.sequence) return false;
    const auto bytes = mailbox.ring[operation.sequence % Mailbox::kCapacity];
    if (bytes.size() != operation.incoming.size()) {
      throw Error(Code::kInternal,
                  "cannot receive from rank " + std::to_string(group_->ranks[operation.peer]) +
                      ": it sent " + std::to_string(bytes.size()) + " bytes, expected " +
                      std::to_string(operation.incoming.size()));
    }
    std::memcpy(operation.incoming.data(), bytes.data(), bytes.size());
    mailbox.taken.store(operation.sequence + 1, std::memory_order_release);
    group_->doorbells[operation.peer].ring();
    return true;
  }

  const std::shared_ptr<LocalHub> hub_;
  const std::shared_ptr<LocalGroup> group_;
  Cancellation& cancellation_;
  std::vector<Operation> operations_;
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, int rank, Cancellation& cancellation,
                 std::shared_ptr<Progress> progress)
      : hub_(std::move(hub)),
        rank_(rank),
        cancellation_(cancellation),
        progress_(std::move(progress)) {}

  std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int tag) override {
    const auto self = std::find(ranks.begin(), ranks.end(), rank_);
    CHECK(self != ranks.end(), "a group is made by its members");
    const int index = static_cast<int>(self - ranks.begin());
    return std::make_unique<LocalCommunicator>(hub_, hub_->join(ranks, tag, index), index,
                                               cancellation_, progress_);
  }

 private:
  const std::shared_ptr<LocalHub> hub_;
  const int rank_;
  Cancellation& cancellation_;
  const std::shared_ptr<Progress> progress_;
};

}  // namespace

std::shared_ptr<LocalGroup> LocalHub::join(std::span<const int> ranks, int tag, int index) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<LocalGroup> group = groups_[tag].lock();
  if (group == nullptr) {
    group = std::make_shared<LocalGroup>(ranks);
    groups_[tag] = group;
    forming_groups_[tag] = group;
  }
  if (!std::equal(ranks.begin(), ranks.end(), group->ranks.begin(), group->ranks.end()) ||
      group->joined[index]) {
    throw Error(Code::kFailedPrecondition,
                "cannot make a group with tag " + std::to_string(tag) +
                    ": another group with this tag still lives; drop it first");
  }
  group->joined[index] = true;
  if (std::count(group->joined.begin(), group->joined.end(), false) == 0) {
    forming_groups_.erase(tag);
  }
  return group;
}

std::shared_ptr<LocalHub> make_local_hub(int num_workers) {
  return std::make_shared<LocalHub>(num_workers);
}

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub, int rank,
                                                Cancellation& cancellation,
                                                std::shared_ptr<Progress> progress) {
  return std::make_unique<LocalTransport>(std::move(hub), rank, cancellation, std::move(progress));
}

}  // namespace trireme
