// SPDX-License-Identifier: Apache-2.0
// Control messages between threads.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "worker/comm/local.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

ToWorker micro_batch(uint64_t id) {
  ToWorker message;
  message.mutable_micro_batch()->set_id(id);
  return message;
}

ToWorker abandon(const std::string& reason) {
  ToWorker message;
  message.mutable_abandon()->set_reason(reason);
  return message;
}

TEST(LocalChannel, MessagesArriveInOrder) {
  const auto hub = make_local_hub(2);
  const auto channel = make_local_channel(hub);
  channel->send(2, micro_batch(0));  // before the worker is there
  std::jthread worker([&] {
    const auto mine = make_local_worker_channel(hub, 2);
    for (uint64_t i = 0; i < 1000; ++i) {
      const auto message = mine->receive(milliseconds(5000));
      ASSERT_TRUE(message.has_value());
      ASSERT_EQ(message->micro_batch().id(), i);
      FromWorker result;
      result.mutable_result()->set_id(i);
      mine->send(result);
    }
  });
  for (uint64_t i = 1; i < 1000; ++i) channel->send(2, micro_batch(i));
  worker.join();
  for (uint64_t i = 0; i < 1000; ++i) {
    const auto event = channel->poll();
    ASSERT_TRUE(event.has_value());
    ASSERT_EQ(event->kind, ChannelEvent::Kind::kMessage);
    ASSERT_EQ(event->rank, 2);
    ASSERT_EQ(event->message.result().id(), i);
  }
  const auto last = channel->poll();
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(last->kind, ChannelEvent::Kind::kClosed);
  EXPECT_FALSE(channel->poll().has_value());
}

TEST(LocalChannel, WakesAfterEachEvent) {
  const auto hub = make_local_hub(1);
  const auto channel = make_local_channel(hub);
  std::atomic<int> woken{0};
  int seen = 0;
  channel->set_wake([&] {
    ++woken;
    while (channel->poll()) ++seen;  // may be polled from within
  });
  {
    const auto worker = make_local_worker_channel(hub, 1);
    worker->send({});
    worker->send({});
  }
  EXPECT_EQ(woken, 3);
  EXPECT_EQ(seen, 3);
}

TEST(LocalChannel, ReceiveTimesOut) {
  const auto hub = make_local_hub(1);
  const auto worker = make_local_worker_channel(hub, 1);
  const auto begin = steady_clock::now();
  EXPECT_FALSE(worker->receive(milliseconds(20)).has_value());
  EXPECT_GE(steady_clock::now() - begin, milliseconds(20));
}

TEST(LocalChannel, AbandonCancelsAtOnceAndArrives) {
  const auto hub = make_local_hub(1);
  const auto channel = make_local_channel(hub);
  const auto worker = make_local_worker_channel(hub, 1);
  channel->send(1, abandon("rank 2 is dead"));
  EXPECT_TRUE(worker->cancellation().cancelled());
  EXPECT_EQ(worker->cancellation().reason(), "rank 2 is dead");
  const auto message = worker->receive(milliseconds(0));
  ASSERT_TRUE(message.has_value());
  EXPECT_TRUE(message->has_abandon());
}

// Queued messages first, then the news; a blocked tensor wait ends as well, even after a reset().
TEST(LocalChannel, CoordinatorsEndIsSeen) {
  const auto hub = make_local_hub(2);
  auto channel = make_local_channel(hub);
  const auto worker = make_local_worker_channel(hub, 1);
  channel->send(1, micro_batch(7));
  channel.reset();
  EXPECT_TRUE(worker->cancellation().cancelled());
  EXPECT_EQ(worker->receive(milliseconds(1000))->micro_batch().id(), 7u);
  EXPECT_THROW(worker->receive(milliseconds(1000)), Error);

  worker->cancellation().reset();
  const auto transport = make_local_transport(hub, 1, worker->cancellation());
  const auto group = transport->make_group(std::vector<int>{1, 2}, 1);
  float value = 0;
  EXPECT_THROW(group->recv(Tensor(&value, DType::kF32, 1, 1), 1), Error);
}

TEST(LocalChannel, ProgressIsReported) {
  const auto hub = make_local_hub(1);
  const auto channel = make_local_channel(hub);
  const auto worker = make_local_worker_channel(hub, 1);
  worker->progress()->begin_batch(41);
  worker->progress()->end_batch();
  std::optional<ChannelEvent> event;
  for (int i = 0; i < 1000 && !event; ++i) {
    std::this_thread::sleep_for(milliseconds(5));
    event = channel->poll();
  }
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->rank, 1);
  EXPECT_EQ(event->message.heartbeat().micro_batch(), 41u);
}

TEST(LocalChannel, DeadWorkerIsIgnored) {
  const auto hub = make_local_hub(1);
  const auto channel = make_local_channel(hub);
  make_local_worker_channel(hub, 1).reset();
  channel->send(1, micro_batch(1));
  EXPECT_EQ(channel->poll()->kind, ChannelEvent::Kind::kClosed);
  EXPECT_FALSE(channel->poll().has_value());
}

}  // namespace
}  // namespace trireme
