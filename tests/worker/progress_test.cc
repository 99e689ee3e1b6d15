// SPDX-License-Identifier: Apache-2.0
#include "worker/progress.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "worker/comm/local.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;

TEST(Progress, TellsABatchFromBeginToEnd) {
  Progress progress;
  EXPECT_EQ(progress.heartbeat().SerializeAsString(), "");  // nothing has happened
  progress.begin_batch(17);
  progress.begin(OPERATION_ALL_REDUCE, 0);
  const std::vector<int> peers{3, 4};
  progress.wait_for(peers);
  Heartbeat beat = progress.heartbeat();
  EXPECT_EQ(beat.current(), 17u);
  EXPECT_EQ(beat.micro_batch(), 0u);
  EXPECT_EQ(beat.operation(), OPERATION_ALL_REDUCE);
  EXPECT_EQ(beat.layer(), 1);
  EXPECT_EQ(std::vector<int>(beat.waiting_for().begin(), beat.waiting_for().end()), peers);
  EXPECT_EQ(progress.waiting_for(), peers);
  const uint64_t operations = beat.operations();
  progress.begin(OPERATION_SAMPLE);
  beat = progress.heartbeat();
  EXPECT_EQ(beat.operations(), operations + 1);
  EXPECT_EQ(beat.layer(), 0);
  EXPECT_EQ(beat.waiting_for_size(), 0);
  progress.end_batch();
  beat = progress.heartbeat();
  EXPECT_EQ(beat.micro_batch(), 17u);
  EXPECT_EQ(beat.current(), 0u);
  EXPECT_EQ(beat.operation(), OPERATION_IDLE);
  progress.begin_batch(18);
  progress.drop_batch();
  EXPECT_EQ(progress.heartbeat().micro_batch(), 17u);
  EXPECT_EQ(progress.heartbeat().current(), 0u);
  const std::vector<int> many(1000, 5);
  progress.wait_for(many);
  EXPECT_LT(progress.heartbeat().waiting_for_size(), 100);
}

TEST(Progress, TellsTheWorkingThreadsTime) {
  Progress progress;
  std::atomic<int> stage{0};
  std::thread thread([&] {
    progress.bind_thread();
    stage = 1;
    volatile uint64_t sum = 0;
    while (stage == 1) sum = sum + 1;
    while (stage == 2) std::this_thread::sleep_for(milliseconds(1));
  });
  while (stage == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  const uint64_t before = progress.heartbeat().cpu_us();
  for (int i = 0; i < 1000 && progress.heartbeat().cpu_us() < before + 2000; ++i) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_GE(progress.heartbeat().cpu_us(), before + 2000);
  stage = 3;
  thread.join();
  progress.heartbeat();  // of a thread that has ended: no harm
}

// The time of finished micro-batches only, and neither waiting for other stages nor for work.
TEST(Progress, TellsWhatMicroBatchesTook) {
  const auto pause = [](int ms) { std::this_thread::sleep_for(milliseconds(ms)); };
  const auto begun = std::chrono::steady_clock::now();
  Progress progress;
  progress.begin_batch(1);
  progress.begin(OPERATION_RECEIVE);
  pause(60);
  progress.begin(OPERATION_ATTENTION, 0);
  pause(40);
  progress.begin(OPERATION_ALL_REDUCE, 0);
  pause(30);
  EXPECT_EQ(progress.heartbeat().compute_us(), 0u);
  EXPECT_EQ(progress.heartbeat().exchange_us(), 0u);
  progress.begin(OPERATION_MLP, 0);
  progress.end_batch();
  pause(20);
  const Heartbeat beat = progress.heartbeat();
  const auto all_us = std::chrono::duration_cast<std::chrono::microseconds>(
                          std::chrono::steady_clock::now() - begun)
                          .count();
  // The clock is some milliseconds coarse.
  EXPECT_GE(beat.compute_us(), 28'000u);
  EXPECT_GE(beat.exchange_us(), 18'000u);
  EXPECT_LE(beat.compute_us() + beat.exchange_us(), static_cast<uint64_t>(all_us) - 56'000u);
  progress.begin_batch(2);
  progress.begin(OPERATION_ATTENTION, 0);
  pause(20);
  EXPECT_EQ(progress.heartbeat().compute_us(), beat.compute_us());
}

// What a reader sees belongs together, however fast the other thread goes on; now and then it
// rests, for under a sanitizer a reader is too slow to find a gap between its changes.
TEST(Progress, IsReadWhole) {
  Progress progress;
  std::atomic<bool> ending{false};
  std::thread thread([&] {
    for (int i = 1; !ending; ++i) {
      progress.begin(i % 2 == 0 ? OPERATION_MLP : OPERATION_ATTENTION, i % 2 == 0 ? 10 : 11);
      const int peer = i % 2;
      progress.wait_for(std::span(&peer, 1));
      progress.wait_for({});
      if (i % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(1));
    }
  });
  for (int i = 0; i < 20000 && !HasFailure(); ++i) {
    const Heartbeat beat = progress.heartbeat();
    if (beat.layer() == 0) continue;
    const bool even = beat.operation() == OPERATION_MLP;
    EXPECT_EQ(beat.layer(), even ? 11 : 12);
    if (beat.waiting_for_size() > 0) {
      EXPECT_EQ(beat.waiting_for(0), even ? 0 : 1);
    }
  }
  ending = true;
  thread.join();
}

TEST(Progress, AWaitSaysForWhom) {
  const auto hub = make_local_hub(3);
  Cancellation cancellation;
  const auto progress = std::make_shared<Progress>();
  const auto transport = make_local_transport(hub, 1, cancellation, progress);
  const auto group = transport->make_group(std::vector<int>{3, 1, 2}, 1);
  std::thread thread([&] {
    float value = 0;
    EXPECT_THROW(group->all_reduce_sum(Tensor(&value, DType::kF32, 1, 1)), Error);
  });
  std::vector<int32_t> peers;
  for (int i = 0; i < 2000 && peers.empty(); ++i) {
    std::this_thread::sleep_for(milliseconds(1));
    peers = progress->waiting_for();
  }
  EXPECT_EQ(peers, (std::vector<int32_t>{2, 3}));
  cancellation.cancel("the test ends");
  thread.join();
}

}  // namespace
}  // namespace trireme
