// SPDX-License-Identifier: Apache-2.0
// A worker's end of its control connection. One thread receives, whatever the worker's thread is
// doing, so that an Abandon reaches a wait for tensors; it sends heartbeats while the process
// lives.
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <thread>

#include "kernels/base/check.h"
#include "worker/comm/control.h"
#include "worker/comm/inbox.h"
#include "worker/comm/socket.h"
#include "worker/comm/tls.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kRetry{50};
// One address may swallow packets without an answer; the next one gets its chance.
constexpr milliseconds kAttempt{1000};
// How long the end waits until the coordinator has read the last messages.
constexpr milliseconds kFarewell{1000};

class TcpWorkerChannel final : public WorkerChannel {
 public:
  // `reader`: what came after the welcome.
  TcpWorkerChannel(std::unique_ptr<TlsContext> tls, std::unique_ptr<TlsStream> stream,
                   FrameReader reader, const ControlLimits& limits)
      : limits_(limits),
        tls_(std::move(tls)),
        stream_(std::move(stream)),
        event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        reader_(std::move(reader)) {
    CHECK(static_cast<bool>(event_), "eventfd failed");
    thread_ = std::thread([this] { run(); });
  }

  ~TcpWorkerChannel() override {
    stopping_ = true;
    wake_thread();
    thread_.join();
  }

  std::optional<ToWorker> receive(milliseconds timeout) override { return inbox_.receive(timeout); }

  void send(const FromWorker& message) override {
    if (stream_->send(make_frame(message, limits_.frame_bytes))) wake_thread();
  }

  const std::shared_ptr<Progress>& progress() override { return progress_; }
  Cancellation& cancellation() override { return cancellation_; }

 private:
  void wake_thread() {
    const uint64_t one = 1;
    // Fails only when the counter is full, and then the thread is awake.
    [[maybe_unused]] const ssize_t written = write(event_.get(), &one, sizeof(one));
  }

  // Sleeps until the socket or the event wants something; true if there is something to read.
  bool sleep(bool want_write, milliseconds timeout) {
    const short events = want_write ? POLLIN | POLLOUT : POLLIN;
    pollfd waits[2] = {{stream_->fd(), events, 0}, {event_.get(), POLLIN, 0}};
    ::poll(waits, 2, static_cast<int>(std::max<int64_t>(timeout.count(), 0)));
    if (waits[1].revents != 0) {
      uint64_t count;
      [[maybe_unused]] const ssize_t got = read(event_.get(), &count, sizeof(count));
    }
    return (waits[0].revents & ~POLLOUT) != 0;
  }

  void run() {
    auto next_heartbeat = steady_clock::now();
    uint64_t told_operations = 0;
    std::optional<std::string> ended = deliver();
    bool left = false;
    while (!ended && !stopping_) {
      const auto now = steady_clock::now();
      if (now >= next_heartbeat) {
        FromWorker message;
        Heartbeat& beat = *message.mutable_heartbeat();
        beat = progress_->heartbeat();
        // An idle rank has nothing to tell but that it is there.
        const bool idle = beat.current() == 0 && beat.operations() == told_operations;
        told_operations = beat.operations();
        next_heartbeat = now + (idle ? 2 : 1) * limits_.heartbeat;
        stream_->send(make_frame(message, limits_.frame_bytes));
      }
      left = stream_->flush();
      const auto timeout = std::chrono::ceil<milliseconds>(next_heartbeat - now);
      if (sleep(left, timeout)) {
        ended = stream_->receive(reader_);
        const auto broken = deliver();
        if (!ended) ended = broken;
      }
    }
    if (ended) {
      stay_ended("the coordinator is gone: " + *ended);
    } else {
      say_farewell();
    }
  }

  // Queues what has come. A value is why the connection must end.
  std::optional<std::string> deliver() {
    while (const auto bytes = reader_.next()) {
      ToWorker message;
      if (!message.ParseFromArray(bytes->data(), static_cast<int>(bytes->size()))) {
        return "it sent a message that cannot be parsed";
      }
      // Before the message is there: a worker that has read it may reset the cancellation.
      if (message.has_abandon()) cancellation_.cancel(message.abandon().reason());
      inbox_.push(std::move(message));
    }
    if (!reader_.error().empty()) return "it sent " + reader_.error();
    return std::nullopt;
  }

  // Again and again, since a reset() for an earlier Abandon may come after the end.
  void stay_ended(const std::string& reason) {
    stream_->finish();
    inbox_.close(reason);
    while (!stopping_) {
      cancellation_.cancel(reason);
      pollfd wait = {event_.get(), POLLIN, 0};
      ::poll(&wait, 1, 100);
    }
  }

  // Waits until the coordinator has closed its end. To close with something unread would destroy
  // what is on its way to it: the reason of a failure, perhaps.
  void say_farewell() {
    const auto end = steady_clock::now() + kFarewell;
    bool finished = false;
    while (steady_clock::now() < end) {
      const bool left = stream_->flush();
      if (!left && !finished) {
        stream_->finish();
        finished = true;
      }
      if (sleep(left, std::chrono::ceil<milliseconds>(end - steady_clock::now())) &&
          stream_->receive(reader_)) {
        return;
      }
      while (reader_.next()) {
      }
    }
  }

  const ControlLimits limits_;
  const std::unique_ptr<TlsContext> tls_;
  const std::unique_ptr<TlsStream> stream_;
  const FileDescriptor event_;
  std::atomic<bool> stopping_{false};
  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
  Cancellation cancellation_;
  Inbox inbox_;
  FrameReader reader_;  // of the thread
  std::thread thread_;
};

// True when both ends have proved the key and the coordinator has said its welcome, an empty
// message. Without it this end could not know that its last word of the handshake was accepted.
bool prove(TlsStream& stream, FrameReader& reader, TimePoint deadline) {
  TlsStream::Handshake state = stream.handshake();
  while (state == TlsStream::Handshake::kPending) {
    if (!wait_ready(stream.fd(), POLLIN, deadline)) return false;
    state = stream.handshake();
  }
  if (state == TlsStream::Handshake::kFailed) return false;
  while (!stream.receive(reader)) {
    if (const auto welcome = reader.next()) return welcome->empty();
    if (!wait_ready(stream.fd(), POLLIN, deadline)) return false;
  }
  return false;
}

}  // namespace

std::unique_ptr<WorkerChannel> connect_control(const ControlAddress& address, int rank,
                                               milliseconds timeout, const ControlLimits& limits) {
  const auto deadline = steady_clock::now() + timeout;
  auto tls = std::make_unique<TlsContext>(address.key, rank);
  std::string attempts;
  do {
    attempts.clear();
    for (const std::string& host : address.hosts) {
      const auto attempt_end = std::min(deadline, steady_clock::now() + kAttempt);
      FileDescriptor socket = connect_socket(host, address.port, attempt_end);
      attempts += " " + host + ": ";
      if (!socket) {
        attempts += std::system_category().message(errno) + ";";
        continue;
      }
      // A coordinator whose host vanished acknowledges no heartbeats.
      limit_silence(socket, limits.dead_after);
      auto stream = std::make_unique<TlsStream>(*tls, std::move(socket));
      FrameReader reader(limits.frame_bytes);
      if (prove(*stream, reader, std::min(deadline, steady_clock::now() + limits.handshake))) {
        return std::make_unique<TcpWorkerChannel>(std::move(tls), std::move(stream),
                                                  std::move(reader), limits);
      }
      attempts +=
          "refused, the job key or rank " + std::to_string(rank) + " is not accepted there;";
    }
    std::this_thread::sleep_for(kRetry);
  } while (steady_clock::now() < deadline);
  throw Error(Code::kUnavailable, "cannot reach the coordinator at port " +
                                      std::to_string(address.port) + " of" + attempts +
                                      " check that this host may connect to it");
}

}  // namespace trireme
