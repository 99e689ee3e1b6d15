// SPDX-License-Identifier: Apache-2.0
// What messages between ranks cost, measured as tensors travel: through a Communicator. Used by the
// worker's thread.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "proto/preflight.pb.h"
#include "worker/comm/communicator.h"

namespace trireme {

// ---- one pair ----

struct LinkSample {
  double latency_s = 0;  // one way, of a short message: the fastest of many
  // Of the time that a message of 1 MiB takes beyond that, or one of 16 MiB where that is better;
  // of 64 KiB where the link is slow.
  double bandwidth_bytes_per_s = 0;
};

// Index 0 of a group of two leads, index 1 answers until it is told that that is all. `budget`:
// about so long; a slow link takes longer, since each size travels at least once.
LinkSample lead_measurement(Communicator& pair, std::chrono::milliseconds budget);
void answer_measurement(Communicator& pair);

// Seconds of each of `trips` messages of `bytes` from index 0 to index 1 with a short one back.
// Both ends call it; index 1 gets nothing.
std::vector<double> round_trips(Communicator& pair, int64_t bytes, int trips);

// ---- a worker's part in the job's measurement ----

class LinkProbe {
 public:
  LinkProbe(Transport& transport, Cancellation& cancellation, int rank)
      : transport_(transport), cancellation_(cancellation), rank_(rank) {}

  // Takes the step. A peer that cannot be reached, or falls silent, is a finding. Throws kCancelled
  // as any wait, kInvalidArgument for a task that cannot be.
  LinkReport run(const LinkTask& task);

 private:
  struct Peer {
    LinkPeer peer;
    std::unique_ptr<Communicator> pair;
    LinkFinding finding;
  };

  void reach(const LinkTask& task);
  void measure(const LinkTask& task);
  template <typename Action>
  void attempt(Peer& peer, Action action);

  Transport& transport_;
  Cancellation& cancellation_;
  const int rank_;
  std::vector<Peer> peers_;
};

}  // namespace trireme
