// SPDX-License-Identifier: Apache-2.0
// Collectives of ranks whose tensors lie in host memory. A transport adds three things: start a
// send, start a receive, wait. All transports share the algorithms, so a sum has the same bits on
// all.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "worker/comm/communicator.h"

namespace trireme {

// Memory that messages leave from and land in. Every message is copied through it: an abandoned
// wait may leave its operation running, which must not reach into tensors that are freed by then.
// Grows to the largest size seen. Shared with the transport, which keeps it as long as it must.
class Staging {
 public:
  explicit Staging(size_t slots) : slots_(slots) {}
  std::span<std::byte> get(size_t slot, size_t bytes) {
    if (slots_[slot].size() < bytes) slots_[slot].resize(bytes);
    return std::span(slots_[slot]).first(bytes);
  }
  size_t bytes() const {
    size_t total = 0;
    for (const auto& slot : slots_) total += slot.capacity();
    return total;
  }

 private:
  std::vector<std::vector<std::byte>> slots_;
};

class HostCommunicator : public Communicator {
 public:
  int rank() const final { return rank_; }
  int size() const final { return size_; }
  void all_reduce_sum(Tensor x) final;
  void gather_columns(Tensor all, Tensor mine, std::span<const int> cols, int root) final;
  void broadcast(Tensor x, int root) final;
  void send(Tensor x, int to) final;
  void recv(Tensor x, int from) final;
  uint64_t reserve(const StagingBytes& bytes, int to) final;

  static std::shared_ptr<Staging> make_staging(int size);

 protected:
  // What a transport can be asked to do at once with one peer. An operation is named by its number,
  // peer · kOperations + kind, and is started again only after it was waited for.
  enum Kind { kFirstSend, kSecondSend, kCollectiveSend, kReceive, kOperations };

  HostCommunicator(int rank, int size, std::shared_ptr<Staging> staging,
                   std::shared_ptr<Progress> progress);
  int num_operations() const { return size_ * kOperations; }

 private:
  // `bytes` is staging and stays as it is until wait(operation) has returned. Messages from one
  // rank to another match in the order in which they were started; a length that differs from what
  // was sent makes the receiver's wait throw.
  virtual void start_send(int operation, std::span<const std::byte> bytes, int to) = 0;
  virtual void start_recv(int operation, std::span<std::byte> bytes, int from) = 0;
  // Until all are done; one that was never started is. Throws kCancelled.
  virtual void wait(std::span<const int> operations) = 0;

  // Parts of staging.
  enum Slot { kIncoming, kOutgoing, kFirstOutbox };

  void reduce_direct(std::span<float> x);
  void reduce_scattered(std::span<float> x);
  void add_in_rank_order(std::span<float> y, std::span<const std::byte> own,
                         std::span<const std::byte> incoming) const;
  // A send and a receive that belong to the collective in progress, and the wait for all of them.
  void put(std::span<const std::byte> bytes, int to);
  void take(std::span<std::byte> bytes, int from);
  void finish();

  const int rank_;
  const int size_;
  const std::shared_ptr<Staging> staging_;
  std::vector<Kind> next_send_;  // by peer: kFirstSend or kSecondSend
  std::vector<int> started_;     // operations of the collective in progress
};

}  // namespace trireme
