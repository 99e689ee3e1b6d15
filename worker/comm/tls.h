// SPDX-License-Identifier: Apache-2.0
// TLS 1.3 over a non-blocking socket, authenticated by a pre-shared key alone: there are no
// certificates. A worker names its rank as the key's identity, so that who has finished the
// handshake has proved the key and said which rank it is. (RFC 8446, 4.2.11)
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "worker/comm/control.h"
#include "worker/comm/frame.h"
#include "worker/comm/socket.h"

// OpenSSL's types.
struct ssl_ctx_st;
struct ssl_st;

namespace trireme {

class TlsContext {
 public:
  // The coordinator's end. Ranks for which `may_connect` is false are refused.
  TlsContext(const JobKey& key, std::function<bool(int rank)> may_connect);
  // A worker's end.
  TlsContext(const JobKey& key, int rank);
  TlsContext(const TlsContext&) = delete;

  // OpenSSL's callbacks need these.
  const JobKey& key() const { return key_; }
  const std::string& identity() const { return identity_; }
  bool may_connect(int rank) const { return may_connect_(rank); }

 private:
  friend class TlsStream;
  TlsContext(const JobKey& key, std::string identity, std::function<bool(int rank)> may_connect);

  const JobKey key_;
  const std::string identity_;                  // the worker's rank; empty at the coordinator
  const std::function<bool(int)> may_connect_;  // null at a worker
  std::unique_ptr<ssl_ctx_st, void (*)(ssl_ctx_st*)> context_;
};

// handshake(), receive() and finish() belong to one thread; send(), flush() and the rest to any.
class TlsStream {
 public:
  TlsStream(const TlsContext& context, FileDescriptor socket);
  int fd() const { return socket_.get(); }

  enum class Handshake { kPending, kDone, kFailed };
  // Goes on with the handshake as far as what has come allows.
  Handshake handshake();
  // At the coordinator: the peer's first message was bound to the key (the PSK binder, RFC 8446,
  // 4.2.11.2). It has the key then, or repeats the words of one who has.
  bool has_shown_key() const;
  size_t bytes_read() const;                    // raw, so far
  int peer_rank() const { return peer_rank_; }  // at the coordinator, after the handshake

  // Queues a frame and writes what the socket takes. Never blocks and never fails: if the
  // connection has ended, receive() tells, after what the peer sent before. True: something is left
  // to flush().
  bool send(std::string frame);
  bool flush();
  size_t queued_bytes() const;

  // Reads what has come. A value tells that the connection has ended, and why.
  std::optional<std::string> receive(FrameReader& reader);

  // No more will be sent; the peer reads an orderly end.
  void finish();
  // Breaks the connection; the thread that reads finds this as the reason.
  void fail(const std::string& reason);

 private:
  bool flush_locked();
  std::string end_reason(int result) const;

  FileDescriptor socket_;
  int peer_rank_ = 0;
  friend struct TlsCallbacks;  // sets peer_rank_

  mutable std::mutex mutex_;  // guards what follows: OpenSSL's streams are for one thread at a time
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl_;
  std::deque<std::string> outgoing_;
  size_t first_offset_ = 0;  // of what is left of outgoing_.front()
  size_t queued_bytes_ = 0;
  std::string failure_;
};

}  // namespace trireme
