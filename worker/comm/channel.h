// SPDX-License-Identifier: Apache-2.0
// The control plane: messages between the coordinator and its workers. Channel is the coordinator's
// end of all connections, WorkerChannel one worker's end of its own. Implementations: control.h
// (TCP), local_channel.h (threads), tests/simulation (virtual clock).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "proto/micro_batch.pb.h"
#include "worker/comm/cancellation.h"
#include "worker/progress.h"

namespace trireme {

struct ChannelEvent {
  enum class Kind {
    kMessage,    // `message` came from the worker
    kClosed,     // the connection ended: the worker is dead; the last event of this rank
    kSuspected,  // no heartbeat for 2 s
    kRecovered,  // a heartbeat again
  };
  int rank = 0;
  Kind kind = Kind::kMessage;
  FromWorker message;
  std::string reason;  // of kClosed and kSuspected
};

class Channel {
 public:
  virtual ~Channel() = default;
  // Queues a message; never blocks. Messages to one rank arrive in order. A rank whose connection
  // has ended is ignored: its kClosed event tells.
  virtual void send(int rank, const ToWorker& message) = 0;
  // The next event, or nullopt at once.
  virtual std::optional<ChannelEvent> poll() = 0;
  // `wake` is called, from any thread, after an event became available. Set before the first event.
  virtual void set_wake(std::function<void()> wake) = 0;
};

class WorkerChannel {
 public:
  virtual ~WorkerChannel() = default;
  // The next message, or nullopt after `timeout`. Spins briefly, then sleeps on the doorbell.
  // Throws kUnavailable when the coordinator is gone.
  virtual std::optional<ToWorker> receive(std::chrono::milliseconds timeout) = 0;
  virtual void send(const FromWorker& message) = 0;  // thread-safe
  // What the worker's thread says here is reported in heartbeats.
  virtual const std::shared_ptr<Progress>& progress() = 0;
  // Set when the connection ends or an Abandon arrives, whatever the worker's thread is doing.
  virtual Cancellation& cancellation() = 0;
};

}  // namespace trireme
