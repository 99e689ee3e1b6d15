// SPDX-License-Identifier: Apache-2.0
// Replies on their way to one client. What the engine's thread hands over is queued and never
// waits: gRPC's threads write it, one message at a time, as fast as the client reads.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "proto/inference.pb.h"

namespace trireme {

// Text, ids and logprobs that a client may leave unread; one message of it must stay below the
// 4 MiB that gRPC's clients accept.
inline constexpr size_t kMaxBacklogBytes = size_t{1} << 20;
// How long a closed stream waits for its client to read the rest.
inline constexpr std::chrono::seconds kLinger{30};

// How many streams have not sent their last word yet. Any thread.
class OpenStreams {
 public:
  void enter();
  void leave();
  int count() const;
  bool wait_none(std::chrono::milliseconds timeout) const;  // false: the time is up

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable none_;
  int count_ = 0;
};

// A server stream that owns itself until gRPC is done with it. Any thread may call; a caller other
// than gRPC must hold a shared_ptr.
template <class Message>
class StreamWriter : public grpc::ServerWriteReactor<Message>,
                     public std::enable_shared_from_this<StreamWriter<Message>> {
 public:
  StreamWriter(OpenStreams& open, grpc::CallbackServerContext* context)
      : open_(open), context_(context) {
    open_.enter();
  }

  // Call once, when it is in a shared_ptr.
  void keep() { self_ = this->shared_from_this(); }

  // Ends the stream when what is queued has been written. False: it was closed before.
  bool close(grpc::Status status) {
    std::unique_lock lock(mutex_);
    if (closed_) return false;
    close_locked(std::move(status));
    pump(lock);
    return true;
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    if (!ok) gone_ = true;
    pump(lock);
  }

  // The client left, its connection broke, or its deadline passed.
  void OnCancel() override {
    std::unique_lock lock(mutex_);
    gone_ = true;
    const bool was_open = !closed_;
    if (was_open) close_locked(grpc::Status(grpc::StatusCode::CANCELLED, "the client left"));
    pump(lock);
    if (was_open) abandoned();
  }

  void OnDone() override {
    std::shared_ptr<StreamWriter> self;
    {
      std::lock_guard lock(mutex_);
      context_ = nullptr;
      self = std::move(self_);
    }
    linger_.Cancel();
    open_.leave();
  }

 protected:
  // Moves the next queued message into `message`; false: none. REQUIRES: mutex_ is held.
  virtual bool take(Message& message) = 0;
  // The client gave up a stream that was not closed. Called without the lock.
  virtual void abandoned() {}

  // REQUIRES: mutex_ is held, the stream is not closed.
  void close_locked(grpc::Status status) {
    closed_ = true;
    status_ = std::move(status);
    // Weak: the alarm is a member, and its function lives as long as the alarm.
    linger_.Set(std::chrono::system_clock::now() + kLinger,
                [stream = this->weak_from_this()](bool expired) {
                  const auto self = stream.lock();
                  if (expired && self != nullptr) self->cut();
                });
  }

  // Starts the next write, or the end. Releases the lock.
  void pump(std::unique_lock<std::mutex>& lock) {
    if (writing_ || finishing_) {
      lock.unlock();
    } else if (!gone_ && take(message_)) {
      writing_ = true;
      lock.unlock();
      this->StartWrite(&message_);
    } else if (closed_) {
      finishing_ = true;
      lock.unlock();
      this->Finish(status_);
    } else {
      lock.unlock();
    }
  }

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  bool closed_ = false;  // nothing more is queued

 private:
  void cut() {
    std::lock_guard lock(mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  OpenStreams& open_;
  grpc::Alarm linger_;
  // Guarded by mutex_, but message_ belongs to gRPC while a write is under way.
  grpc::CallbackServerContext* context_;  // null when gRPC is done
  std::shared_ptr<StreamWriter> self_;
  Message message_;
  bool writing_ = false;
  bool finishing_ = false;
  bool gone_ = false;  // nobody reads any more
  grpc::Status status_;
};

// The events of one request. Deltas of an answer that wait for a slow client become one; the
// answers take turns.
class ReplyStream final : public StreamWriter<v1::GenerateReply> {
 public:
  using StreamWriter::StreamWriter;

  // Ends the request in the engine. Set before anything can be queued.
  void set_abandon(std::function<void()> on_abandon) { on_abandon_ = std::move(on_abandon); }
  // Ends the stream with RESOURCE_EXHAUSTED where more than kMaxBacklogBytes are unread.
  void add(const v1::Delta& delta);
  // The last event of an answer; the stream closes after that of the last one.
  void finish(const v1::Finished& finished, bool last);

 private:
  bool take(v1::GenerateReply& reply) override;
  void abandoned() override { on_abandon_(); }

  std::function<void()> on_abandon_;
  // What waits of one answer: at least one of the two.
  struct Pending {
    int32_t index = 0;
    std::optional<v1::Delta> delta;
    size_t delta_bytes = 0;
    std::optional<v1::Finished> finished;
  };
  // The entry of an answer, at the end of the queue if there was none. REQUIRES: mutex_ is held.
  Pending& pending(int32_t index);

  // Guarded by mutex_.
  std::deque<Pending> pending_;
  size_t pending_bytes_ = 0;
};

// The latest health; states that a client was too slow to read are skipped.
class HealthStream final : public StreamWriter<v1::ClusterHealth> {
 public:
  using StreamWriter::StreamWriter;

  void update(const v1::ClusterHealth& health);

 private:
  bool take(v1::ClusterHealth& health) override;

  // Guarded by mutex_.
  v1::ClusterHealth latest_;
  bool pending_ = false;
};

}  // namespace trireme
