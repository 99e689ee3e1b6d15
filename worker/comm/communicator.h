// SPDX-License-Identifier: Apache-2.0
// The data plane: tensors among a fixed list of ranks. Every wait can be abandoned: it throws
// kCancelled once the rank's Cancellation is set, and the Communicator must then be dropped.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "topology/shard.h"
#include "worker/comm/cancellation.h"
#include "worker/progress.h"

namespace trireme {

// A group of ranks seen from one of them; `rank` here is the index in the group. All members call
// the same collectives in the same order. Used by one thread. Tensors are fp32 with stride == cols.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // x = Σ over ranks of x, in every rank; summed in rank order, so that a row's bits depend neither
  // on the number of rows nor on the transport. NCCL has orders of its own for more than two ranks.
  virtual void all_reduce_sum(Tensor x) = 0;
  // Rank r contributes mine [T, cols[r]]; `all` [T, Σ cols] in rank order is filled on root only.
  virtual void gather_columns(Tensor all, Tensor mine, std::span<const int> cols, int root) = 0;
  // x of root to everyone.
  virtual void broadcast(Tensor x, int root) = 0;
  // Point to point, matched in order. send returns once x may be changed, which may be long before
  // the peer has it; recv once x is there.
  virtual void send(Tensor x, int to) = 0;
  virtual void recv(Tensor x, int from) = 0;

  // Allocates what messages are staged in, and says what is held then of the memory that tensors
  // lie in; a transport that stages none does nothing. `outbox` is for messages to `to`.
  virtual uint64_t reserve(const StagingBytes& /*bytes*/, int /*to*/) { return 0; }

  // Until all that these queued on a device has been done; before the backend is waited for, which
  // nothing could end. Ranks on the host have done it already.
  virtual void settle() {}

  // Whether all_reduce_sum() of up to so many bytes may be part of Backend::replay(). Alike in all
  // ranks of the group.
  virtual bool can_record(int64_t /*bytes*/) const { return size() == 1; }
  // Sums of this rank were queued by a recording.
  virtual void replayed() {}

  // Where its rank says what it is doing; a wait that lasts says there for whom.
  Progress& progress() { return *progress_; }
  const std::shared_ptr<Progress>& share_progress() const { return progress_; }

 protected:
  explicit Communicator(std::shared_ptr<Progress> progress = std::make_shared<Progress>())
      : progress_(std::move(progress)) {}

 private:
  const std::shared_ptr<Progress> progress_;
};

// One rank's way to all others; makes groups.
class Transport {
 public:
  virtual ~Transport() = default;
  // ranks: world ranks, this one among them, in group order. Every member calls it with the same
  // list and a `tag` that no other live group uses. Only members take part.
  virtual std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int tag) = 0;
  // The same of two ranks that send and receive and never sum.
  virtual std::unique_ptr<Communicator> make_edge(std::span<const int> ranks, int tag) {
    return make_group(ranks, tag);
  }
};

}  // namespace trireme
