// SPDX-License-Identifier: Apache-2.0
// What the tests of control connections start from.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "worker/comm/control.h"
#include "worker/comm/local.h"
#include "worker/comm/tls.h"

namespace trireme {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Kind = ChannelEvent::Kind;

constexpr milliseconds kSoon{5000};  // more than anything takes that works
constexpr ControlLimits kDefaults;

inline std::unique_ptr<ControlServer> serve(int num_workers,
                                            const ControlLimits& limits = kDefaults) {
  return make_control_server(num_workers, true, limits);
}

inline std::unique_ptr<WorkerChannel> join(const ControlServer& server, int rank,
                                           const ControlLimits& limits = kDefaults) {
  return connect_control(server.address(), rank, kSoon, limits);
}

// The next event that is not a heartbeat.
inline std::optional<ChannelEvent> next_event(Channel& channel, milliseconds timeout = kSoon) {
  const auto end = steady_clock::now() + timeout;
  do {
    while (auto event = channel.poll()) {
      if (event->kind != Kind::kMessage || !event->message.has_heartbeat()) return event;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  } while (steady_clock::now() < end);
  return std::nullopt;
}

inline void expect_closed(Channel& channel, int rank, const std::string& reason) {
  const auto event = next_event(channel);
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->rank, rank);
  ASSERT_EQ(event->kind, Kind::kClosed);
  EXPECT_NE(event->reason.find(reason), std::string::npos) << event->reason;
}

inline ToWorker micro_batch(uint64_t id, int tokens = 0) {
  ToWorker message;
  message.mutable_micro_batch()->set_id(id);
  auto* const chunk = message.mutable_micro_batch()->add_chunks();
  for (int i = 0; i < tokens; ++i) chunk->add_token_ids(i);
  return message;
}

inline FromWorker result(uint64_t id) {
  FromWorker message;
  message.mutable_result()->set_id(id);
  return message;
}

inline FileDescriptor connect_raw(const ControlServer& server) {
  FileDescriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(server.address().port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) return {};
  return fd;
}

// How long until the peer has closed this connection; nullopt: it has not, within `timeout`.
inline std::optional<milliseconds> time_to_close(const FileDescriptor& fd,
                                                 milliseconds timeout = kSoon) {
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

}  // namespace trireme
