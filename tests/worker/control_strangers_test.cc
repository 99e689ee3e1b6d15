// SPDX-License-Identifier: Apache-2.0
// Control connections over loopback: what they do to those who lack the key or break the rules.
#include "tests/worker/control_fixture.h"

namespace trireme {
namespace {

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

// A worker far away: between its hello and its last word of the handshake is a round trip.
TEST(Control, StrangersDoNotTakeThePlaceOfOneWhoHasShownTheKey) {
  ControlLimits limits;
  limits.handshake = 4 * kSoon;
  const auto server = serve(1, limits);
  const TlsContext context(server->address().key, 1);
  TlsStream worker(
      context, connect_socket("127.0.0.1", server->address().port, steady_clock::now() + kSoon));
  ASSERT_EQ(worker.handshake(), TlsStream::Handshake::kPending);
  ASSERT_TRUE(wait_ready(worker.fd(), POLLIN, steady_clock::now() + kSoon));  // the answer
  std::vector<FileDescriptor> strangers;
  for (int i = 0; i < 500; ++i) strangers.push_back(connect_raw(*server));
  for (int i = 0; i < 500 - 64; ++i) {
    ASSERT_TRUE(time_to_close(strangers[static_cast<size_t>(i)]).has_value()) << i;
  }
  EXPECT_EQ(worker.handshake(), TlsStream::Handshake::kDone);
  server->wait_for_workers(kSoon);
  EXPECT_EQ(server->connected(), 1);
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

}  // namespace
}  // namespace trireme
