// SPDX-License-Identifier: Apache-2.0
// Somebody on the wire who has no key: bytes of a worker that are sent again, cut or kept back. And
// ten thousand who come during the start.
#include <filesystem>
#include <fstream>
#include <mutex>

#include "tests/worker/control_fixture.h"

namespace trireme {
namespace {

// Stands between a worker and the coordinator, keeps what the worker sends, and can send more.
class Wire {
 public:
  // first_only: of the worker's bytes only the first piece, its ClientHello, gets through.
  Wire(const ControlServer& server, bool first_only)
      : listener_(listen_for_workers(true)),
        first_only_(first_only),
        to_server_(connect_raw(server)) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }

  uint16_t port() const { return port_of(listener_); }
  std::string sent() const {
    const std::lock_guard lock(mutex_);
    return sent_;
  }
  void inject(const std::string& bytes) {
    ASSERT_EQ(pass(to_server_, bytes), static_cast<ssize_t>(bytes.size()));
  }

 private:
  // Either end may be gone by then: -1 is no failure of the wire.
  static ssize_t pass(const FileDescriptor& to, const std::string& bytes) {
    return send(to.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  // What has come; empty: nothing, or the end.
  static std::string take(const FileDescriptor& from) {
    pollfd wait = {from.get(), POLLIN, 0};
    char bytes[16384];
    if (poll(&wait, 1, 1) != 1) return "";
    const ssize_t size = recv(from.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
    return size > 0 ? std::string(bytes, static_cast<size_t>(size)) : "";
  }

  void run(const std::stop_token& stop) {
    FileDescriptor worker;
    while (!worker && !stop.stop_requested()) {
      worker = accept_connection(listener_);
      if (!worker) std::this_thread::sleep_for(milliseconds(1));
    }
    while (!stop.stop_requested()) {
      const std::string bytes = take(worker);
      if (!bytes.empty()) {
        const std::lock_guard lock(mutex_);
        if (!first_only_ || sent_.empty()) pass(to_server_, bytes);
        sent_ += bytes;
      }
      const std::string answer = take(to_server_);
      if (!answer.empty()) pass(worker, answer);
    }
  }

  const FileDescriptor listener_;
  const bool first_only_;
  const FileDescriptor to_server_;
  mutable std::mutex mutex_;
  std::string sent_;  // guarded by mutex_
  std::jthread thread_;
};

ControlAddress through(const Wire& wire, const ControlServer& server) {
  ControlAddress address = server.address();
  address.port = wire.port();
  return address;
}

// A handshake that never arrived is a proof for that connection only.
TEST(ControlReplay, ARecordedHandshakeIsRefused) {
  ControlLimits limits;
  limits.handshake = milliseconds(1000);
  const auto server = serve(2, limits);
  const auto other = join(*server, 1);
  std::string recorded;
  {
    Wire wire(*server, true);
    EXPECT_THROW(connect_control(through(wire, *server), 2, milliseconds(500), kDefaults), Error);
    recorded = wire.sent();
  }
  ASSERT_GT(recorded.size(), 200u);  // a ClientHello, and what proves the key
  for (const size_t size : {recorded.size(), recorded.size() / 2, recorded.size() - 1}) {
    const FileDescriptor replay = connect_raw(*server);
    ASSERT_EQ(send(replay.get(), recorded.data(), size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
    EXPECT_TRUE(time_to_close(replay).has_value());
    EXPECT_EQ(server->connected(), 1);
  }
  const auto worker = join(*server, 2);  // its place was not taken
  server->wait_for_workers(kSoon);
  for (const int rank : {1, 2}) server->send(rank, micro_batch(1));
  EXPECT_TRUE(other->receive(kSoon).has_value());
  EXPECT_TRUE(worker->receive(kSoon).has_value());
}

TEST(ControlReplay, AFrameThatIsSentAgainIsNotTakenAgain) {
  ControlLimits limits;
  limits.heartbeat = milliseconds(1000);
  const auto server = serve(2, limits);
  const auto other = join(*server, 2, limits);
  Wire wire(*server, false);
  const auto worker = connect_control(through(wire, *server), 1, kSoon, limits);
  server->wait_for_workers(kSoon);
  const size_t before = wire.sent().size();
  worker->send(result(7));
  auto event = next_event(*server);
  ASSERT_TRUE(event && event->kind == Kind::kMessage);
  EXPECT_EQ(event->message.result().id(), 7u);
  wire.inject(wire.sent().substr(before));
  event = next_event(*server);
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->rank, 1);
  EXPECT_EQ(event->kind, Kind::kClosed) << "a message was taken twice";
  server->send(2, micro_batch(1));
  EXPECT_TRUE(other->receive(kSoon).has_value());
}

TEST(ControlReplay, ACutFrameIsNoMessage) {
  const auto server = serve(2);
  const auto other = join(*server, 2);
  {
    RawWorker worker(*server, 1);
    server->wait_for_workers(kSoon);
    std::string frame = make_frame(result(7), 1000);
    frame.resize(frame.size() - 1);
    worker.send(frame);
    EXPECT_FALSE(next_event(*server, milliseconds(100)).has_value());
  }
  const auto event = next_event(*server);
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->kind, Kind::kClosed);
  server->send(2, micro_batch(1));
  EXPECT_TRUE(other->receive(kSoon).has_value());
}

int open_descriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Half-open, half a hello, garbage, a record that promises much: in turn, each left open for as
// long as the server bears it.
TEST(ControlReplay, TenThousandStrangersTakeNoMemoryAndNoPlace) {
  const auto server = serve(2);
  const auto first = join(*server, 1);
  const std::string kinds[] = {"", std::string("\x16\x03\x01\x01\x00\x01", 6), "garbage\r\n\r\n",
                               std::string("\x17\x03\x03\x40\x00", 5) + std::string(900, 'x'),
                               std::string("\x16\x03\x01\x00\xc8", 5) + std::string(190, '\1')};
  constexpr int kOpen = 200;  // of ours at a time
  std::vector<FileDescriptor> open(kOpen);
  const int descriptors = open_descriptors();
  const uint64_t memory = resident_bytes();
  int most = 0;
  for (int i = 0; i < 10000; ++i) {
    FileDescriptor stranger = connect_raw(*server);
    ASSERT_TRUE(static_cast<bool>(stranger)) << i;
    const std::string& kind = kinds[i % 5];
    if (!kind.empty()) send(stranger.get(), kind.data(), kind.size(), MSG_NOSIGNAL);
    open[static_cast<size_t>(i % kOpen)] = std::move(stranger);
    if (i % 500 == 499) most = std::max(most, open_descriptors() - descriptors - kOpen);
  }
  EXPECT_LE(most, 64 + 8) << "descriptors that the server holds for strangers";
  const uint64_t now = resident_bytes();
  EXPECT_LT(now, memory + (32u << 20)) << "memory that it holds for them";
  const auto begin = steady_clock::now();
  const auto second = join(*server, 2);
  server->wait_for_workers(kSoon);
  EXPECT_LT(steady_clock::now() - begin, milliseconds(2000));
  for (uint64_t id = 0; id < 100; ++id) {
    server->send(1, micro_batch(id));
    ASSERT_TRUE(first->receive(kSoon).has_value());
  }
}

}  // namespace
}  // namespace trireme
