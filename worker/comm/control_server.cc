// SPDX-License-Identifier: Apache-2.0
// The coordinator's end of the control connections. One thread accepts, proves, reads and watches
// over silence; send() writes from its caller's thread, which saves a wake-up, and leaves to the
// thread only what the socket did not take.
#include <openssl/rand.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "kernels/base/check.h"
#include "worker/comm/control.h"
#include "worker/comm/socket.h"
#include "worker/comm/tls.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Peers whose hello has not shown the key, at once; the oldest gives way to a newcomer. Those that
// have shown it do not: a worker far away needs its place for a round trip more, in which thousands
// of strangers can come. Of them there are as many as workers.
constexpr int kUnprovedMax = 64;
// A handshake takes no more than this many frames of the unproved size.
constexpr uint32_t kHandshakeFrames = 4;
// A worker that lets this much wait does not read any more.
constexpr size_t kQueuedBytesMax = size_t{256} << 20;
// Connections accepted before those that are there get their turn again.
constexpr int kAcceptsAtOnce = 8;
// How long the end of the server waits for its last messages to be read.
constexpr milliseconds kFarewell{1000};

std::string seconds(milliseconds duration) {
  return std::to_string(duration.count() / 1000) + "." +
         std::to_string(duration.count() / 100 % 10) + " s";
}

class TcpControlServer final : public ControlServer {
 public:
  TcpControlServer(int num_workers, bool loopback_only, const ControlLimits& limits);
  ~TcpControlServer() override;

  ControlAddress address() const override { return address_; }
  void wait_for_workers(milliseconds timeout, const std::vector<std::string>& hosts) override;
  int connected() const override;
  void send(int rank, const ToWorker& message) override;
  std::optional<ChannelEvent> poll() override;
  void set_wake(std::function<void()> wake) override;

 private:
  struct Connection {
    std::shared_ptr<TlsStream> stream;
    FrameReader reader;
    steady_clock::time_point heard;  // anything; before the handshake is done: accepted
    int rank = 0;                    // 0 until the handshake is done
    bool shown_key = false;          // by its hello
    bool suspected = false;
    bool finished = false;  // the farewell was said
  };
  using Connections = std::map<int, Connection>;  // by file descriptor

  // What is known of a worker. A rank connects once: its end is final.
  struct Worker {
    enum class State { kAbsent, kConnected, kGone } state = State::kAbsent;
    std::shared_ptr<TlsStream> stream;
    std::string reason;
  };

  // ---- the thread ----
  void run();
  void accept_some();
  // Of those that are not proved, the ones that have shown the key or the others.
  int count_unproved(bool shown_key) const;
  bool drop_oldest_unproved(bool shown_key);
  std::optional<std::string> serve(Connection& connection);
  std::optional<std::string> prove(Connection& connection);
  std::optional<std::string> deliver(Connection& connection);
  void flush(Connection& connection);
  void watch_silence(steady_clock::duration pause);
  std::optional<std::string> silence(Connection& connection, steady_clock::time_point now);
  void say_farewell();
  void end(Connections::iterator connection, const std::string& reason);
  void watch(int operation, int fd, uint32_t events) const;
  void post(ChannelEvent event);
  void wake();

  bool may_connect(int rank);

  const ControlLimits limits_;
  ControlAddress address_;
  TlsContext tls_;
  const FileDescriptor epoll_;
  const FileDescriptor stop_event_;
  std::atomic<bool> stopping_{false};

  // of the thread
  FileDescriptor listener_;
  Connections connections_;
  bool unannounced_ = false;  // heartbeats came since the last wake

  mutable std::mutex mutex_;
  std::condition_variable workers_changed_;
  // guarded by mutex_
  std::vector<Worker> workers_;  // of rank 1, 2, …
  std::deque<ChannelEvent> events_;

  // A mutex of its own: held during the call, so that set_wake(nullptr) ends all calls.
  std::mutex wake_mutex_;
  std::function<void()> wake_;

  std::thread thread_;
};

TcpControlServer::TcpControlServer(int num_workers, bool loopback_only, const ControlLimits& limits)
    : limits_(limits),
      address_([] {
        ControlAddress address;
        CHECK(RAND_bytes(address.key.data(), static_cast<int>(address.key.size())) == 1,
              "no random numbers");
        return address;
      }()),
      tls_(address_.key, [this](int rank) { return may_connect(rank); }),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      stop_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      listener_(listen_for_workers(loopback_only)),
      workers_(num_workers) {
  CHECK(epoll_ && stop_event_, "epoll or eventfd failed");
  address_.port = port_of(listener_);
  address_.hosts = loopback_only ? std::vector<std::string>{"127.0.0.1"} : interface_addresses();
  watch(EPOLL_CTL_ADD, listener_.get(), EPOLLIN);
  watch(EPOLL_CTL_ADD, stop_event_.get(), EPOLLIN | EPOLLONESHOT);
  thread_ = std::thread([this] { run(); });
}

TcpControlServer::~TcpControlServer() {
  set_wake(nullptr);
  stopping_ = true;
  const uint64_t one = 1;
  CHECK(write(stop_event_.get(), &one, sizeof(one)) == sizeof(one), "eventfd failed");
  thread_.join();
}

void TcpControlServer::wait_for_workers(milliseconds timeout,
                                        const std::vector<std::string>& hosts) {
  const auto name = [&](size_t rank) {
    return std::to_string(rank) + (rank < hosts.size() ? " on " + hosts[rank] : "");
  };
  std::unique_lock lock(mutex_);
  std::string absent;
  const auto arrived = [&] {
    absent.clear();
    for (size_t i = 0; i < workers_.size(); ++i) {
      if (workers_[i].state == Worker::State::kGone) return true;
      if (workers_[i].state == Worker::State::kAbsent) {
        absent += (absent.empty() ? " " : ", ") + name(i + 1);
      }
    }
    return absent.empty();
  };
  if (!workers_changed_.wait_for(lock, timeout, arrived)) {
    throw Error(Code::kDeadlineExceeded,
                "cannot start: no control connection within " + seconds(timeout) + " from rank" +
                    absent + "; look for their errors, and whether their hosts can reach port " +
                    std::to_string(address_.port) + " of " + address_.hosts.front());
  }
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].state == Worker::State::kGone) {
      throw Error(Code::kUnavailable, "cannot start: rank " + name(i + 1) +
                                          " connected and was lost: " + workers_[i].reason);
    }
  }
}

int TcpControlServer::connected() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(std::count_if(workers_.begin(), workers_.end(), [](const Worker& worker) {
    return worker.state == Worker::State::kConnected;
  }));
}

void TcpControlServer::send(int rank, const ToWorker& message) {
  std::shared_ptr<TlsStream> stream;
  {
    const std::lock_guard lock(mutex_);
    CHECK(rank >= 1 && rank <= static_cast<int>(workers_.size()), "workers have ranks from 1");
    stream = workers_[rank - 1].stream;
  }
  if (stream == nullptr || !stream->send(make_frame(message, limits_.frame_bytes))) return;
  if (stream->queued_bytes() > kQueuedBytesMax) stream->fail("it does not read its messages");
  // Fails if the thread has ended the connection meanwhile, which is as well.
  watch(EPOLL_CTL_MOD, stream->fd(), EPOLLIN | EPOLLOUT);
}

std::optional<ChannelEvent> TcpControlServer::poll() {
  const std::lock_guard lock(mutex_);
  if (events_.empty()) return std::nullopt;
  std::optional<ChannelEvent> event(std::move(events_.front()));
  events_.pop_front();
  return event;
}

void TcpControlServer::set_wake(std::function<void()> wake) {
  const std::lock_guard lock(wake_mutex_);
  wake_ = std::move(wake);
}

// Heartbeats of idle workers are all that happens for hours: they wake nobody one by one, but
// together at the next tick.
void TcpControlServer::post(ChannelEvent event) {
  const bool can_wait = event.message.has_heartbeat();
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  unannounced_ = unannounced_ || can_wait;
  if (!can_wait) wake();
}

void TcpControlServer::wake() {
  unannounced_ = false;
  const std::lock_guard lock(wake_mutex_);
  if (wake_) wake_();
}

bool TcpControlServer::may_connect(int rank) {
  const std::lock_guard lock(mutex_);
  return rank >= 1 && rank <= static_cast<int>(workers_.size()) &&
         workers_[rank - 1].state == Worker::State::kAbsent;
}

void TcpControlServer::watch(int operation, int fd, uint32_t events) const {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(epoll_.get(), operation, fd, &event);
}

void TcpControlServer::run() {
  const milliseconds tick =
      std::max(milliseconds(1),
               std::min({limits_.heartbeat, limits_.handshake / 4, limits_.suspect_after / 8}));
  auto last_look = steady_clock::now();
  std::optional<steady_clock::time_point> farewell_end;
  while (!farewell_end || (!connections_.empty() && last_look < *farewell_end)) {
    epoll_event ready[64];
    const int count = epoll_wait(epoll_.get(), ready, 64, static_cast<int>(tick.count()));
    for (int i = 0; i < count; ++i) {
      if (listener_ && ready[i].data.fd == listener_.get()) {
        accept_some();
        continue;
      }
      const auto found = connections_.find(ready[i].data.fd);
      if (found == connections_.end()) continue;
      if ((ready[i].events & EPOLLOUT) != 0) flush(found->second);
      if ((ready[i].events & ~EPOLLOUT) == 0) continue;
      if (const auto reason = serve(found->second)) end(found, *reason);
    }
    const auto now = steady_clock::now();
    if (stopping_) {
      if (!farewell_end) farewell_end = now + kFarewell;
      say_farewell();
    } else if (now - last_look >= tick) {
      watch_silence(now - last_look - tick);
      if (unannounced_) wake();
    }
    if (stopping_ || now - last_look >= tick) last_look = now;
  }
}

void TcpControlServer::accept_some() {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    FileDescriptor socket = accept_connection(listener_);
    if (!socket) {
      // Out of descriptors: make room, or the same connection would be announced again at once.
      const bool none_left = errno == EMFILE || errno == ENFILE;
      if (none_left && !drop_oldest_unproved(false)) drop_oldest_unproved(true);
      return;
    }
    if (count_unproved(false) >= kUnprovedMax) drop_oldest_unproved(false);
    if (count_unproved(true) > static_cast<int>(workers_.size())) drop_oldest_unproved(true);
    const int fd = socket.get();
    Connection connection{std::make_shared<TlsStream>(tls_, std::move(socket)),
                          FrameReader(limits_.frame_bytes), steady_clock::now()};
    connections_.emplace(fd, std::move(connection));
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
  }
}

int TcpControlServer::count_unproved(bool shown_key) const {
  return static_cast<int>(std::count_if(
      connections_.begin(), connections_.end(),
      [&](const auto& c) { return c.second.rank == 0 && c.second.shown_key == shown_key; }));
}

bool TcpControlServer::drop_oldest_unproved(bool shown_key) {
  auto oldest = connections_.end();
  for (auto c = connections_.begin(); c != connections_.end(); ++c) {
    if (c->second.rank != 0 || c->second.shown_key != shown_key) continue;
    if (oldest == connections_.end() || c->second.heard < oldest->second.heard) oldest = c;
  }
  if (oldest == connections_.end()) return false;
  end(oldest, "too many unproved connections");
  return true;
}

// Reads what has come. A value is why the connection must end.
std::optional<std::string> TcpControlServer::serve(Connection& connection) {
  if (connection.rank == 0) {
    if (const auto reason = prove(connection)) return reason;
    if (connection.rank == 0) return std::nullopt;
  }
  const auto ended = connection.stream->receive(connection.reader);
  connection.heard = steady_clock::now();
  if (const auto reason = deliver(connection)) return reason;
  return ended;
}

std::optional<std::string> TcpControlServer::prove(Connection& connection) {
  const TlsStream::Handshake state = connection.stream->handshake();
  if (state == TlsStream::Handshake::kFailed) return "it does not have the job key";
  if (state == TlsStream::Handshake::kPending) {
    connection.shown_key = connection.stream->has_shown_key();
    const bool too_long =
        connection.stream->bytes_read() > kHandshakeFrames * limits_.unproved_frame_bytes;
    return too_long ? std::optional<std::string>("too many bytes in a handshake") : std::nullopt;
  }
  const int rank = connection.stream->peer_rank();
  if (!may_connect(rank)) return "the rank has a connection already";
  connection.rank = rank;
  connection.heard = steady_clock::now();
  connection.stream->send(
      make_frame(ToWorker(), limits_.frame_bytes));  // the welcome, first of all
  const std::lock_guard lock(mutex_);
  workers_[rank - 1] = {Worker::State::kConnected, connection.stream, ""};
  workers_changed_.notify_all();
  const bool complete = std::all_of(workers_.begin(), workers_.end(), [](const Worker& w) {
    return w.state != Worker::State::kAbsent;
  });
  if (complete) listener_ = FileDescriptor();  // nobody else is expected
  return std::nullopt;
}

std::optional<std::string> TcpControlServer::deliver(Connection& connection) {
  while (const auto bytes = connection.reader.next()) {
    ChannelEvent event{connection.rank, ChannelEvent::Kind::kMessage, {}, ""};
    if (!event.message.ParseFromArray(bytes->data(), static_cast<int>(bytes->size()))) {
      return "it sent a message that cannot be parsed";
    }
    if (connection.suspected) {
      connection.suspected = false;
      post({connection.rank, ChannelEvent::Kind::kRecovered, {}, ""});
    }
    post(std::move(event));
  }
  if (!connection.reader.error().empty()) return "it sent " + connection.reader.error();
  return std::nullopt;
}

// Disarmed before the attempt: a send() that queues after it arms again by itself.
void TcpControlServer::flush(Connection& connection) {
  watch(EPOLL_CTL_MOD, connection.stream->fd(), EPOLLIN);
  if (connection.rank != 0 && connection.stream->flush()) {
    watch(EPOLL_CTL_MOD, connection.stream->fd(), EPOLLIN | EPOLLOUT);
  }
}

// `pause`: for how long this thread itself did not run, which says nothing about the workers.
void TcpControlServer::watch_silence(steady_clock::duration pause) {
  const auto now = steady_clock::now();
  for (auto c = connections_.begin(); c != connections_.end();) {
    const auto next = std::next(c);
    if (pause > limits_.suspect_after / 2) c->second.heard += pause;
    if (const auto reason = silence(c->second, now)) end(c, *reason);
    c = next;
  }
}

std::optional<std::string> TcpControlServer::silence(Connection& connection,
                                                     steady_clock::time_point now) {
  const auto silent = std::chrono::duration_cast<milliseconds>(now - connection.heard);
  if (connection.rank == 0) {
    return silent > limits_.handshake ? std::optional<std::string>("it did not prove the job key")
                                      : std::nullopt;
  }
  const std::string reason = "no heartbeat for " + seconds(silent);
  if (silent > limits_.dead_after) return reason;
  if (silent > limits_.suspect_after && !connection.suspected) {
    connection.suspected = true;
    post({connection.rank, ChannelEvent::Kind::kSuspected, {}, reason});
  }
  return std::nullopt;
}

// At the end: strangers go at once, workers when their last messages have left. Each then closes
// its end, and nothing of what it was sent is lost.
void TcpControlServer::say_farewell() {
  listener_ = FileDescriptor();
  for (auto c = connections_.begin(); c != connections_.end();) {
    const auto next = std::next(c);
    if (c->second.rank == 0) {
      end(c, "the coordinator ends");
    } else if (!c->second.finished && !c->second.stream->flush()) {
      c->second.stream->finish();
      c->second.finished = true;
    }
    c = next;
  }
}

void TcpControlServer::end(Connections::iterator connection, const std::string& reason) {
  const int rank = connection->second.rank;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection->first, nullptr);
  if (rank != 0) {
    connection->second.stream->fail(reason);
    const std::lock_guard lock(mutex_);
    workers_[rank - 1] = {Worker::State::kGone, nullptr, reason};
    workers_changed_.notify_all();
  }
  connections_.erase(connection);
  if (rank != 0) post({rank, ChannelEvent::Kind::kClosed, {}, reason});
}

}  // namespace

std::unique_ptr<ControlServer> make_control_server(int num_workers, bool loopback_only,
                                                   const ControlLimits& limits) {
  return std::make_unique<TcpControlServer>(num_workers, loopback_only, limits);
}

}  // namespace trireme
