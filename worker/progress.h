// SPDX-License-Identifier: Apache-2.0
// What a rank's working thread is doing: written by that thread as it goes, for some nanoseconds a
// time, and read by the thread that sends heartbeats. No lock, no allocation, no system call.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <ctime>
#include <span>
#include <vector>

#include "proto/micro_batch.pb.h"

namespace trireme {

class Progress {
 public:
  // ---- the working thread ----
  // Calls follow from this thread: its CPU time is the one that is told.
  void bind_thread();
  void begin_batch(uint64_t id);
  void end_batch();   // it is finished, and the rank idle
  void drop_batch();  // it never will be
  // layer: counted from 0; -1: the operation is of no layer.
  void begin(Operation operation, int layer = -1);
  // The operation goes on: as good as a new one for whoever asks whether this rank moves.
  void step() {
    operations_.store(operations_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  // It cannot go on without these world ranks, of which the first few are told; none: it can.
  void wait_for(std::span<const int> peers);

  // ---- any thread ----
  Heartbeat heartbeat() const;
  std::vector<int32_t> waiting_for() const;

 private:
  static constexpr size_t kMaxPeers = 8;

  // Several fields change together, under an odd number; whoever reads them finds the same even
  // number before and after, or reads again.
  class Change;
  // The operation in work ends now: its time goes to what it was spent in.
  void account(Change& change, int64_t now);
  template <class Read>
  void read_whole(Read read) const;

  std::atomic<uint64_t> version_{0};
  std::atomic<uint64_t> finished_{0};
  std::atomic<uint64_t> current_{0};
  std::atomic<Operation> operation_{OPERATION_IDLE};
  std::atomic<int32_t> layer_{-1};
  std::atomic<int64_t> begun_us_{0};
  // Of the working thread: what all operations took.
  int64_t compute_us_ = 0;
  int64_t exchange_us_ = 0;
  // The same when the last micro-batch was finished.
  std::atomic<int64_t> finished_compute_us_{0};
  std::atomic<int64_t> finished_exchange_us_{0};
  std::atomic<size_t> num_peers_{0};
  std::array<std::atomic<int32_t>, kMaxPeers> peers_{};
  std::atomic<uint64_t> operations_{0};
  std::atomic<bool> bound_{false};
  std::atomic<clockid_t> cpu_clock_{0};
};

}  // namespace trireme
