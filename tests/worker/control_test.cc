// SPDX-License-Identifier: Apache-2.0
// Control connections over loopback: what they carry, and how their end and silence are seen.
#include "tests/worker/control_fixture.h"

namespace trireme {
namespace {

TEST(Control, HandshakeAndMessages) {
  const auto server = serve(2);
  const auto first = join(*server, 1);
  const auto second = join(*server, 2);
  server->wait_for_workers(kSoon);
  server->send(2, micro_batch(5));
  const auto message = second->receive(kSoon);
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(message->micro_batch().id(), 5u);
  EXPECT_FALSE(first->receive(milliseconds(0)).has_value());
  first->send(result(6));
  const auto event = next_event(*server);
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->rank, 1);
  EXPECT_EQ(event->message.result().id(), 6u);
}

// What workers of other hosts would use: each address in turn.
TEST(Control, ListensOnAllInterfaces) {
  std::unique_ptr<ControlServer> server;
  try {
    server = make_control_server(8, false, kDefaults);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  ControlAddress address = server->address();
  std::vector<std::unique_ptr<WorkerChannel>> workers;
  for (const std::string& host : server->address().hosts) {
    if (workers.size() == 8) break;
    address.hosts = {host};
    const int rank = static_cast<int>(workers.size()) + 1;
    workers.push_back(connect_control(address, rank, kSoon, kDefaults));
  }
  EXPECT_FALSE(workers.empty());
}

TEST(Control, MissingRanksAreNamed) {
  const auto server = serve(3);
  const auto worker = join(*server, 2);
  try {
    server->wait_for_workers(milliseconds(300));
    FAIL() << "two ranks are missing";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kDeadlineExceeded);
    EXPECT_NE(std::string(error.what()).find("rank 1, 3;"), std::string::npos) << error.what();
  }
  try {
    server->wait_for_workers(milliseconds(1), {"a", "b", "c", "d"});
    FAIL() << "two ranks are missing";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank 1 on b, 3 on d;"), std::string::npos)
        << error.what();
  }
}

TEST(Control, LossAtStartEndsTheWait) {
  const auto server = serve(2);
  { RawWorker worker(*server, 2); }
  try {
    server->wait_for_workers(kSoon);
    FAIL() << "rank 2 is dead";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUnavailable);
  }
}

TEST(Control, DeathIsSeenAtOnce) {
  const auto server = serve(1);
  auto worker = std::make_unique<RawWorker>(*server, 1);
  server->wait_for_workers(kSoon);
  worker->send(make_frame(result(3), 1000));
  const auto begin = steady_clock::now();
  worker.reset();
  EXPECT_EQ(next_event(*server)->message.result().id(), 3u);  // what came before still counts
  expect_closed(*server, 1, "the process has died");
  EXPECT_LE(steady_clock::now() - begin, milliseconds(50));
  for (int i = 0; i < 10; ++i) server->send(1, micro_batch(i));  // no signal, no error
  EXPECT_FALSE(next_event(*server, milliseconds(50)).has_value());
}

// The last words of a worker that ends arrive although the coordinator is sending to it meanwhile.
TEST(Control, LastWordsArrive) {
  const auto server = serve(1);
  auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  for (int i = 0; i < 100; ++i) server->send(1, micro_batch(i, 1000));
  FromWorker failed;
  failed.mutable_failed()->set_message("out of memory");
  worker->send(failed);
  worker.reset();
  const auto event = next_event(*server);
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->message.failed().message(), "out of memory");
  expect_closed(*server, 1, "it closed the connection");
}

TEST(Control, SilenceIsSuspectedThenDead) {
  ControlLimits limits;
  limits.heartbeat = milliseconds(50);
  limits.suspect_after = milliseconds(300);
  limits.dead_after = milliseconds(900);
  const auto server = serve(1, limits);
  ControlLimits mute = limits;
  mute.heartbeat = std::chrono::hours(1);  // the first one only
  const auto worker = join(*server, 1, mute);
  const auto begin = steady_clock::now();
  auto event = next_event(*server);
  ASSERT_TRUE(event.has_value());
  ASSERT_EQ(event->kind, Kind::kSuspected);
  EXPECT_GE(steady_clock::now() - begin, milliseconds(250));
  EXPECT_LE(steady_clock::now() - begin, milliseconds(700));

  worker->send(result(1));  // any sign of life
  ASSERT_EQ(next_event(*server)->kind, Kind::kRecovered);
  ASSERT_EQ(next_event(*server)->message.result().id(), 1u);

  ASSERT_EQ(next_event(*server)->kind, Kind::kSuspected);
  expect_closed(*server, 1, "no heartbeat for");
  EXPECT_THROW(worker->receive(kSoon), Error);
}

TEST(Control, HeartbeatsCarryProgress) {
  ControlLimits limits;
  limits.heartbeat = milliseconds(20);
  const auto server = serve(1, limits);
  const auto worker = join(*server, 1, limits);
  worker->progress()->begin_batch(77);
  worker->progress()->end_batch();
  const auto end = steady_clock::now() + kSoon;
  uint64_t progress = 0;
  while (progress != 77 && steady_clock::now() < end) {
    const auto event = server->poll();
    if (event && event->message.has_heartbeat())
      progress = event->message.heartbeat().micro_batch();
  }
  EXPECT_EQ(progress, 77u);
}

TEST(Control, AbandonEndsABlockedWait) {
  const auto server = serve(1);
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  const auto hub = make_local_hub(2);
  const auto transport = make_local_transport(hub, 1, worker->cancellation());
  const auto group = transport->make_group(std::vector<int>{1, 2}, 0);

  std::atomic<steady_clock::rep> sent_at{0};
  std::jthread coordinator([&] {
    std::this_thread::sleep_for(milliseconds(50));
    sent_at = steady_clock::now().time_since_epoch().count();
    ToWorker abandon;
    abandon.mutable_abandon()->set_reason("rank 2 is dead");
    server->send(1, abandon);
  });
  float value = 0;
  try {
    group->recv(Tensor(&value, DType::kF32, 1, 1), 1);
    ADD_FAILURE() << "nobody sent anything";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCancelled);
    EXPECT_STREQ(error.what(), "rank 2 is dead");
  }
  const auto ended_at = steady_clock::now().time_since_epoch().count();
  coordinator.join();
  EXPECT_LE(steady_clock::duration(ended_at - sent_at), milliseconds(50));
  const auto message = worker->receive(kSoon);  // and the loop reads why
  ASSERT_TRUE(message.has_value());
  EXPECT_TRUE(message->has_abandon());
}

// The last message, then the end; a wait begun after a reset() ends as well.
TEST(Control, CoordinatorsEndIsSeen) {
  auto server = serve(1);
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  ToWorker shutdown;
  shutdown.mutable_shutdown();
  server->send(1, shutdown);
  server.reset();
  EXPECT_TRUE(worker->receive(kSoon)->has_shutdown());
  EXPECT_THROW(worker->receive(kSoon), Error);
  EXPECT_TRUE(worker->cancellation().cancelled());
  worker->cancellation().reset();
  const auto end = steady_clock::now() + kSoon;
  while (!worker->cancellation().cancelled() && steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_TRUE(worker->cancellation().cancelled());
  worker->send(result(1));  // ignored
}

TEST(Control, LargeMessagesBothWays) {
  const auto server = serve(1);
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  constexpr int kTokens = 10 << 20;
  FromWorker large;
  large.mutable_failed()->set_message(std::string(30 << 20, 'x'));
  std::jthread other([&] { worker->send(large); });
  server->send(1, micro_batch(1, kTokens));
  server->send(1, micro_batch(2));
  const auto first = worker->receive(milliseconds(20000));
  ASSERT_TRUE(first.has_value());
  ASSERT_EQ(first->micro_batch().chunks(0).token_ids_size(), kTokens);
  EXPECT_EQ(first->micro_batch().chunks(0).token_ids(kTokens - 1), kTokens - 1);
  EXPECT_EQ(worker->receive(kSoon)->micro_batch().id(), 2u);
  other.join();
  const auto event = next_event(*server, milliseconds(20000));
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->message.failed().message(), large.failed().message());
}

TEST(Control, MessageBeyondTheLimitIsNotSent) {
  ControlLimits limits;
  limits.frame_bytes = 1000;
  const auto server = serve(1, limits);
  const auto worker = join(*server, 1, limits);
  server->wait_for_workers(kSoon);
  EXPECT_THROW(server->send(1, micro_batch(1, 5000)), Error);
  server->send(1, micro_batch(2));
  EXPECT_EQ(worker->receive(kSoon)->micro_batch().id(), 2u);
}

TEST(Control, ManyMessagesStayInOrder) {
  const auto server = serve(2);
  const auto first = join(*server, 1);
  const auto second = join(*server, 2);
  server->wait_for_workers(kSoon);
  constexpr uint64_t kMessages = 20000;
  const auto work = [](WorkerChannel& channel) {
    for (uint64_t i = 0; i < kMessages; ++i) {
      const auto message = channel.receive(kSoon);
      ASSERT_TRUE(message.has_value());
      ASSERT_EQ(message->micro_batch().id(), i);
      channel.send(result(i));
    }
  };
  std::jthread one([&] { work(*first); });
  std::jthread two([&] { work(*second); });
  for (uint64_t i = 0; i < kMessages; ++i) {
    server->send(1, micro_batch(i, static_cast<int>(i % 50)));
    server->send(2, micro_batch(i));
  }
  uint64_t next[3] = {};
  while (next[1] + next[2] < 2 * kMessages) {
    const auto event = next_event(*server);
    ASSERT_TRUE(event.has_value());
    ASSERT_EQ(event->message.result().id(), next[event->rank]++);
  }
  one.join();
  two.join();
}

// Both ends' threads and a worker's thread that waits: under 0.5 % of a core.
TEST(Control, IdleCostsNothing) {
  const auto server = serve(1);
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  const auto cpu_seconds = [] {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double before = cpu_seconds();
  EXPECT_FALSE(worker->receive(milliseconds(2000)).has_value());
  const double used = (cpu_seconds() - before) / 2.0;
  std::printf("idle: %.3f %% of a core\n", 100 * used);
  EXPECT_LT(used, 0.005);
}

// From send() to the answer's wake-up, with all threads asleep before.
TEST(Control, RoundTripOutOfIdle) {
  const auto server = serve(1);
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  std::mutex mutex;
  std::condition_variable woken;
  uint64_t answered = 0;
  server->set_wake([&] {
    while (const auto event = server->poll()) {
      if (!event->message.has_result()) continue;
      const std::lock_guard lock(mutex);
      answered = event->message.result().id();
      woken.notify_one();
    }
  });
  constexpr uint64_t kRounds = 100;
  std::jthread echo([&] {
    for (uint64_t i = 0; i < kRounds; ++i) {
      const auto message = worker->receive(kSoon);
      ASSERT_TRUE(message.has_value());
      worker->send(result(message->micro_batch().id()));
    }
  });
  std::vector<double> micros;
  for (uint64_t i = 1; i <= kRounds; ++i) {
    std::this_thread::sleep_for(milliseconds(10));
    const auto begin = steady_clock::now();
    server->send(1, micro_batch(i, 8));
    std::unique_lock lock(mutex);
    ASSERT_TRUE(woken.wait_for(lock, kSoon, [&] { return answered == i; }));
    micros.push_back(
        std::chrono::duration<double, std::micro>(steady_clock::now() - begin).count());
  }
  echo.join();
  server->set_wake(nullptr);
  std::sort(micros.begin(), micros.end());
  std::printf("round trip out of idle: median %.0f us, p99 %.0f us\n", micros[kRounds / 2],
              micros[kRounds - 2]);
  EXPECT_LT(micros[kRounds / 2], 50000);
}

}  // namespace
}  // namespace trireme
