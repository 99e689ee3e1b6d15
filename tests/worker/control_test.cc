// SPDX-License-Identifier: Apache-2.0
// Control connections over loopback: what they carry, and what they do to strangers and to silence.
#include "worker/comm/control.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "worker/comm/local.h"
#include "worker/comm/tls.h"

namespace trireme {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Kind = ChannelEvent::Kind;

constexpr milliseconds kSoon{5000};  // more than anything takes that works
constexpr ControlLimits kDefaults;

std::unique_ptr<ControlServer> serve(int num_workers, const ControlLimits& limits = kDefaults) {
  return make_control_server(num_workers, true, limits);
}

std::unique_ptr<WorkerChannel> join(const ControlServer& server, int rank,
                                    const ControlLimits& limits = kDefaults) {
  return connect_control(server.address(), rank, kSoon, limits);
}

// The next event that is not a heartbeat.
std::optional<ChannelEvent> next_event(Channel& channel, milliseconds timeout = kSoon) {
  const auto end = steady_clock::now() + timeout;
  do {
    while (auto event = channel.poll()) {
      if (event->kind != Kind::kMessage || !event->message.has_heartbeat()) return event;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  } while (steady_clock::now() < end);
  return std::nullopt;
}

void expect_closed(Channel& channel, int rank, const std::string& reason) {
  const auto event = next_event(channel);
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->rank, rank);
  ASSERT_EQ(event->kind, Kind::kClosed);
  EXPECT_NE(event->reason.find(reason), std::string::npos) << event->reason;
}

ToWorker micro_batch(uint64_t id, int tokens = 0) {
  ToWorker message;
  message.mutable_micro_batch()->set_id(id);
  auto* const chunk = message.mutable_micro_batch()->add_chunks();
  for (int i = 0; i < tokens; ++i) chunk->add_token_ids(i);
  return message;
}

FromWorker result(uint64_t id) {
  FromWorker message;
  message.mutable_result()->set_id(id);
  return message;
}

FileDescriptor connect_raw(const ControlServer& server) {
  FileDescriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(server.address().port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) return {};
  return fd;
}

// How long until the peer has closed this connection; nullopt: it has not, within `timeout`.
std::optional<milliseconds> time_to_close(const FileDescriptor& fd, milliseconds timeout = kSoon) {
  const auto begin = steady_clock::now();
  char bytes[4096];
  while (steady_clock::now() < begin + timeout) {
    pollfd wait = {fd.get(), POLLIN, 0};
    if (poll(&wait, 1, 10) == 1 && recv(fd.get(), bytes, sizeof(bytes), MSG_DONTWAIT) <= 0) {
      return duration_cast<milliseconds>(steady_clock::now() - begin);
    }
  }
  return std::nullopt;
}

// A worker that can misbehave: the right key, any bytes. Its destruction is a process's sudden
// death.
class RawWorker {
 public:
  RawWorker(const ControlServer& server, int rank)
      : context_(server.address().key, rank),
        stream_(context_,
                connect_socket("127.0.0.1", server.address().port, steady_clock::now() + kSoon)) {
    while (stream_.handshake() == TlsStream::Handshake::kPending) {
    }
    FrameReader reader(1000);
    while (!reader.next() && !stream_.receive(reader)) {
    }
  }
  void send(std::string bytes) { stream_.send(std::move(bytes)); }

 private:
  TlsContext context_;
  TlsStream stream_;
};

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
    EXPECT_NE(std::string(error.what()).find("rank 1 3;"), std::string::npos) << error.what();
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

TEST(Control, WrongKeyIsRefused) {
  const auto server = serve(1);
  ControlAddress address = server->address();
  address.key[31] ^= 1;
  EXPECT_THROW(connect_control(address, 1, milliseconds(200), kDefaults), Error);
  const auto worker = join(*server, 1);  // the right one still gets in
  server->wait_for_workers(kSoon);
}

// The worker believes nobody who lacks the key either.
TEST(Control, ImpostorIsRefused) {
  const auto server = serve(1);
  const auto impostor = serve(1);
  ControlAddress address = server->address();
  address.port = impostor->address().port;
  EXPECT_THROW(connect_control(address, 1, milliseconds(200), kDefaults), Error);
}

TEST(Control, RanksOutsideTheJobAreRefused) {
  const auto server = serve(2);
  for (const int rank : {0, 3, -1, 1 << 30}) {
    EXPECT_THROW(connect_control(server->address(), rank, milliseconds(100), kDefaults), Error);
  }
}

TEST(Control, SecondConnectionOfARankIsRefused) {
  const auto server = serve(2);
  const auto worker = join(*server, 1);
  EXPECT_THROW(connect_control(server->address(), 1, milliseconds(200), kDefaults), Error);
  server->send(1, micro_batch(1));  // the first one is as it was
  EXPECT_TRUE(worker->receive(kSoon).has_value());
}

TEST(Control, GarbageIsClosedAtOnce) {
  const auto server = serve(1);
  for (const std::string& garbage :
       {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), std::string(1000, '\xff'),
        std::string("\0\0\0\5hello", 9),
        std::string("\x16\x03\x01\x40\x00", 5) + std::string(2000, 'x')}) {
    const FileDescriptor fd = connect_raw(*server);
    ASSERT_EQ(send(fd.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(garbage.size()));
    const auto closed = time_to_close(fd);
    ASSERT_TRUE(closed.has_value());
    EXPECT_LT(*closed, milliseconds(1000)) << garbage.substr(0, 20);
  }
}

TEST(Control, HalfOpenConnectionIsClosedAfterItsTime) {
  ControlLimits limits;
  limits.handshake = milliseconds(300);
  const auto server = serve(1, limits);
  const FileDescriptor silent = connect_raw(*server);
  const FileDescriptor partial = connect_raw(*server);
  ASSERT_EQ(send(partial.get(), "\x16\x03\x01", 3, MSG_NOSIGNAL), 3);
  const auto closed = time_to_close(silent);
  ASSERT_TRUE(closed.has_value());
  EXPECT_GE(*closed, milliseconds(200));
  EXPECT_LE(*closed, milliseconds(1000));
  EXPECT_TRUE(time_to_close(partial, milliseconds(1000)).has_value());
}

// Strangers that say nothing take 64 places at most, and keep nobody out.
TEST(Control, IdleStrangersDoNoHarm) {
  const auto server = serve(1);
  std::vector<FileDescriptor> strangers;
  for (int i = 0; i < 500; ++i) {
    strangers.push_back(connect_raw(*server));
    ASSERT_TRUE(static_cast<bool>(strangers.back())) << i;
  }
  const auto begin = steady_clock::now();
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  EXPECT_LT(steady_clock::now() - begin, milliseconds(1000));
  const auto closed = std::count_if(strangers.begin(), strangers.end(), [](const auto& fd) {
    return time_to_close(fd, milliseconds(1)).has_value();
  });
  EXPECT_GE(closed, 500 - 64);
  // Nobody else is expected now.
  EXPECT_FALSE(static_cast<bool>(connect_raw(*server)));
}

TEST(Control, StormOfGarbageDoesNoHarm) {
  const auto server = serve(1);
  std::atomic<bool> stop{false};
  std::jthread storm([&] {
    for (int i = 0; i < 10000 && !stop; ++i) {
      const FileDescriptor fd = connect_raw(*server);
      if (fd) send(fd.get(), "\x7f\x45\x4c\x46garbage", 11, MSG_NOSIGNAL);
    }
  });
  std::this_thread::sleep_for(milliseconds(100));
  const auto worker = join(*server, 1);
  server->wait_for_workers(kSoon);
  for (uint64_t i = 0; i < 100; ++i) {
    server->send(1, micro_batch(i));
    ASSERT_TRUE(worker->receive(kSoon).has_value());
  }
  stop = true;
  storm.join();
}

TEST(Control, BadFramesCloseTheirConnectionOnly) {
  const auto server = serve(3);
  RawWorker oversized(*server, 1);
  RawWorker unparsable(*server, 2);
  const auto worker = join(*server, 3);
  server->wait_for_workers(kSoon);
  oversized.send(std::string("\x7f\xff\xff\xff", 4));
  expect_closed(*server, 1, "a message of 2147483647 bytes");
  unparsable.send(std::string("\0\0\0\3\xff\xff\xff", 7));
  expect_closed(*server, 2, "cannot be parsed");
  server->send(3, micro_batch(1));
  EXPECT_TRUE(worker->receive(kSoon).has_value());
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
  worker->set_progress(77);
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
