// SPDX-License-Identifier: Apache-2.0
#include "worker/progress.h"

#include <pthread.h>

#include <algorithm>

namespace trireme {
namespace {

// A reader that never meets a quiet moment tells what it has: health is no place to wait.
constexpr int kMaxReads = 1000;

// Some milliseconds coarse, and so without a look at the hardware's clock. Sums of differences are
// right all the same: a tick falls into an operation as often as its share of the time.
int64_t now_us() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return int64_t{now.tv_sec} * 1000000 + now.tv_nsec / 1000;
}

}  // namespace

// All stores of a change are releases, so that who reads one of them reads the odd number too.
class Progress::Change {
 public:
  explicit Change(Progress& progress) : progress_(progress) {
    version_ = progress_.version_.load(std::memory_order_relaxed);
    progress_.version_.store(version_ + 1, std::memory_order_relaxed);
  }
  ~Change() { progress_.version_.store(version_ + 2, std::memory_order_release); }

  template <class Field, class Value>
  void set(Field& field, Value value) {
    field.store(value, std::memory_order_release);
  }

 private:
  Progress& progress_;
  uint64_t version_;
};

void Progress::bind_thread() {
  clockid_t clock{};
  if (pthread_getcpuclockid(pthread_self(), &clock) != 0) return;
  cpu_clock_.store(clock, std::memory_order_relaxed);
  bound_.store(true, std::memory_order_release);
}

void Progress::begin_batch(uint64_t id) {
  Change change(*this);
  change.set(current_, id);
}

void Progress::account(Change& change, int64_t now) {
  const int64_t took = std::max<int64_t>(now - begun_us_.load(std::memory_order_relaxed), 0);
  switch (operation_.load(std::memory_order_relaxed)) {
    case OPERATION_EMBED:
    case OPERATION_ATTENTION:
    case OPERATION_MLP:
    case OPERATION_HEAD:
    case OPERATION_SAMPLE: compute_us_ += took; break;
    case OPERATION_ALL_REDUCE:
    case OPERATION_BROADCAST:
    case OPERATION_GATHER: exchange_us_ += took; break;
    default: break;
  }
  change.set(begun_us_, now);
}

void Progress::end_batch() {
  {
    Change change(*this);
    account(change, now_us());
    change.set(finished_compute_us_, compute_us_);
    change.set(finished_exchange_us_, exchange_us_);
    change.set(finished_, current_.load(std::memory_order_relaxed));
    change.set(current_, uint64_t{0});
  }
  begin(OPERATION_IDLE);
}

void Progress::drop_batch() {
  {
    Change change(*this);
    change.set(current_, uint64_t{0});
  }
  begin(OPERATION_IDLE);
}

void Progress::begin(Operation operation, int layer) {
  Change change(*this);
  account(change, now_us());
  change.set(operation_, operation);
  change.set(layer_, layer);
  change.set(num_peers_, size_t{0});
  step();
}

void Progress::wait_for(std::span<const int> peers) {
  Change change(*this);
  const size_t count = std::min(peers.size(), kMaxPeers);
  for (size_t i = 0; i < count; ++i) change.set(peers_[i], peers[i]);
  change.set(num_peers_, count);
}

template <class Read>
void Progress::read_whole(Read read) const {
  for (int i = 0; i < kMaxReads; ++i) {
    const uint64_t before = version_.load(std::memory_order_acquire);
    read();
    if (before % 2 == 0 && version_.load(std::memory_order_relaxed) == before) return;
  }
}

std::vector<int32_t> Progress::waiting_for() const {
  std::vector<int32_t> peers;
  read_whole([&] {
    peers.clear();
    const size_t count = num_peers_.load(std::memory_order_acquire);
    for (size_t i = 0; i < count; ++i) peers.push_back(peers_[i].load(std::memory_order_acquire));
  });
  return peers;
}

Heartbeat Progress::heartbeat() const {
  Heartbeat beat;
  int64_t begun_us = 0;
  read_whole([&] {
    beat.set_micro_batch(finished_.load(std::memory_order_acquire));
    beat.set_current(current_.load(std::memory_order_acquire));
    beat.set_operation(operation_.load(std::memory_order_acquire));
    beat.set_layer(layer_.load(std::memory_order_acquire) + 1);
    begun_us = begun_us_.load(std::memory_order_acquire);
    beat.set_compute_us(
        static_cast<uint64_t>(finished_compute_us_.load(std::memory_order_acquire)));
    beat.set_exchange_us(
        static_cast<uint64_t>(finished_exchange_us_.load(std::memory_order_acquire)));
    beat.clear_waiting_for();
    const size_t count = num_peers_.load(std::memory_order_acquire);
    for (size_t i = 0; i < count; ++i) {
      beat.add_waiting_for(peers_[i].load(std::memory_order_acquire));
    }
  });
  if (begun_us > 0) beat.set_operation_us(std::max<int64_t>(now_us() - begun_us, 0));
  beat.set_operations(operations_.load(std::memory_order_relaxed));
  timespec used{};
  // The clock of a thread that has ended cannot be read.
  if (bound_.load(std::memory_order_acquire) &&
      clock_gettime(cpu_clock_.load(std::memory_order_relaxed), &used) == 0) {
    beat.set_cpu_us(static_cast<uint64_t>(used.tv_sec) * 1000000 +
                    static_cast<uint64_t>(used.tv_nsec) / 1000);
  }
  return beat;
}

}  // namespace trireme
