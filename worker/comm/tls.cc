// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <system_error>

#include "kernels/base/check.h"

namespace trireme {
namespace {

// The only suite. Its hash must be the one that the key is bound to: SHA-256 goes with 32 bytes.
constexpr char kSuite[] = "TLS_AES_128_GCM_SHA256";
constexpr unsigned char kSuiteId[] = {0x13, 0x01};
constexpr int kRecordBytes = 16 << 10;  // the most that one record holds
constexpr int kRecordsAtOnce = 64;      // of one connection, before others get their turn

// ---- the socket under OpenSSL: its own would raise SIGPIPE ----

int bio_write(BIO* bio, const char* data, int size) {
  BIO_clear_retry_flags(bio);
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t sent = ::send(fd, data, size, MSG_NOSIGNAL);
  if (sent >= 0) return static_cast<int>(sent);
  if (errno == EAGAIN || errno == EINTR) {
    BIO_set_retry_write(bio);
    return -1;
  }
  // The connection has ended. What the peer sent before its end (why it failed, perhaps) is still
  // to be read, which OpenSSL would not do after an error.
  return size;
}

int bio_read(BIO* bio, char* data, int size) {
  BIO_clear_retry_flags(bio);
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t got = ::recv(fd, data, size, 0);
  if (got == 0) errno = 0;
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  return static_cast<int>(got);
}

long bio_control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

int bio_create(BIO* bio) {
  BIO_set_init(bio, 1);
  return 1;
}

BIO* make_bio(int fd) {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "control connection");
    CHECK(made != nullptr, "BIO_meth_new failed");
    BIO_meth_set_write(made, bio_write);
    BIO_meth_set_read(made, bio_read);
    BIO_meth_set_ctrl(made, bio_control);
    BIO_meth_set_create(made, bio_create);
    return made;
  }();
  BIO* const bio = BIO_new(method);
  CHECK(bio != nullptr, "BIO_new failed");
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  return bio;
}

SSL_SESSION* make_session(SSL* ssl, const JobKey& key) {
  SSL_SESSION* const session = SSL_SESSION_new();
  const SSL_CIPHER* const suite = SSL_CIPHER_find(ssl, kSuiteId);
  CHECK(session != nullptr && suite != nullptr, "OpenSSL lacks TLS_AES_128_GCM_SHA256");
  CHECK(SSL_SESSION_set1_master_key(session, key.data(), key.size()) == 1 &&
            SSL_SESSION_set_cipher(session, suite) == 1 &&
            SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1,
        "cannot make a session of the job key");
  return session;
}

}  // namespace

struct TlsCallbacks {
  static const TlsContext& context_of(SSL* ssl) {
    return *static_cast<const TlsContext*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)));
  }

  static int use_session(SSL* ssl, const EVP_MD*, const unsigned char** identity, size_t* size,
                         SSL_SESSION** session) {
    const TlsContext& context = context_of(ssl);
    *identity = reinterpret_cast<const unsigned char*>(context.identity().data());
    *size = context.identity().size();
    *session = make_session(ssl, context.key());
    return 1;
  }

  // Without a session the handshake fails, since there is no certificate to go on with.
  static int find_session(SSL* ssl, const unsigned char* identity, size_t size,
                          SSL_SESSION** session) {
    *session = nullptr;
    const char* const begin = reinterpret_cast<const char*>(identity);
    int rank = 0;
    const auto [end, error] = std::from_chars(begin, begin + size, rank);
    const TlsContext& context = context_of(ssl);
    if (error == std::errc() && end == begin + size && context.may_connect(rank)) {
      static_cast<TlsStream*>(SSL_get_app_data(ssl))->peer_rank_ = rank;
      *session = make_session(ssl, context.key());
    }
    return 1;
  }
};

TlsContext::TlsContext(const JobKey& key, std::function<bool(int)> may_connect)
    : TlsContext(key, "", std::move(may_connect)) {}

TlsContext::TlsContext(const JobKey& key, int rank)
    : TlsContext(key, std::to_string(rank), nullptr) {}

TlsContext::TlsContext(const JobKey& key, std::string identity,
                       std::function<bool(int)> may_connect)
    : key_(key),
      identity_(std::move(identity)),
      may_connect_(std::move(may_connect)),
      context_(SSL_CTX_new(may_connect_ ? TLS_server_method() : TLS_client_method()),
               SSL_CTX_free) {
  SSL_CTX* const context = context_.get();
  CHECK(context != nullptr && SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
            SSL_CTX_set_ciphersuites(context, kSuite) == 1 &&
            SSL_CTX_set1_groups_list(context, "X25519") == 1,
        "OpenSSL cannot do TLS 1.3");
  SSL_CTX_set_app_data(context, this);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  if (may_connect_) {
    SSL_CTX_set_psk_find_session_callback(context, TlsCallbacks::find_session);
  } else {
    SSL_CTX_set_psk_use_session_callback(context, TlsCallbacks::use_session);
    // An impostor's certificate is verified, and trusted by nobody.
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  }
}

TlsStream::TlsStream(const TlsContext& context, FileDescriptor socket)
    : socket_(std::move(socket)), ssl_(SSL_new(context.context_.get()), SSL_free) {
  CHECK(ssl_ != nullptr, "SSL_new failed");
  BIO* const bio = make_bio(fd());
  SSL_set_bio(ssl_.get(), bio, bio);
  SSL_set_app_data(ssl_.get(), this);
  if (context.may_connect_) {
    SSL_set_accept_state(ssl_.get());
  } else {
    SSL_set_connect_state(ssl_.get());
  }
}

TlsStream::Handshake TlsStream::handshake() {
  const std::lock_guard lock(mutex_);
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result == 1) {
    // "Reused" is what OpenSSL calls a handshake by pre-shared key.
    return SSL_session_reused(ssl_.get()) == 1 ? Handshake::kDone : Handshake::kFailed;
  }
  const int error = SSL_get_error(ssl_.get(), result);
  // It waits to read only: a handshake's few hundred bytes always fit a new socket's buffer.
  return error == SSL_ERROR_WANT_READ ? Handshake::kPending : Handshake::kFailed;
}

bool TlsStream::has_shown_key() const {
  const std::lock_guard lock(mutex_);
  return SSL_session_reused(ssl_.get()) == 1;
}

size_t TlsStream::bytes_read() const {
  const std::lock_guard lock(mutex_);
  return BIO_number_read(SSL_get_rbio(ssl_.get()));
}

bool TlsStream::send(std::string frame) {
  const std::lock_guard lock(mutex_);
  queued_bytes_ += frame.size();
  outgoing_.push_back(std::move(frame));
  return flush_locked();
}

bool TlsStream::flush() {
  const std::lock_guard lock(mutex_);
  return flush_locked();
}

size_t TlsStream::queued_bytes() const {
  const std::lock_guard lock(mutex_);
  return queued_bytes_;
}

bool TlsStream::flush_locked() {
  while (!outgoing_.empty()) {
    const std::string& frame = outgoing_.front();
    size_t written = 0;
    ERR_clear_error();
    const int result = SSL_write_ex(ssl_.get(), frame.data() + first_offset_,
                                    frame.size() - first_offset_, &written);
    if (result != 1) {
      if (SSL_get_error(ssl_.get(), result) == SSL_ERROR_WANT_WRITE) return true;
      outgoing_.clear();  // the connection has ended
      queued_bytes_ = first_offset_ = 0;
      return false;
    }
    first_offset_ += written;
    queued_bytes_ -= written;
    if (first_offset_ == frame.size()) {
      outgoing_.pop_front();
      first_offset_ = 0;
    }
  }
  return false;
}

std::optional<std::string> TlsStream::receive(FrameReader& reader) {
  char bytes[kRecordBytes];
  for (int i = 0; i < kRecordsAtOnce; ++i) {
    size_t got = 0;
    {
      const std::lock_guard lock(mutex_);
      ERR_clear_error();
      const int result = SSL_read_ex(ssl_.get(), bytes, sizeof(bytes), &got);
      if (result != 1) {
        if (SSL_get_error(ssl_.get(), result) == SSL_ERROR_WANT_READ) return std::nullopt;
        return end_reason(result);
      }
    }
    reader.append({bytes, got});
  }
  return std::nullopt;
}

std::string TlsStream::end_reason(int result) const {
  const int system_error = errno;
  if (!failure_.empty()) return failure_;
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_ZERO_RETURN: return "it closed the connection";
    case SSL_ERROR_SYSCALL:
      return system_error == 0 || system_error == ECONNRESET
                 ? "the connection ended without a word: the process has died"
                 : "the connection broke: " + std::system_category().message(system_error);
    default: {
      const char* const text = ERR_reason_error_string(ERR_peek_error());
      return std::string("the connection broke: ") + (text == nullptr ? "TLS error" : text);
    }
  }
}

void TlsStream::finish() {
  const std::lock_guard lock(mutex_);
  ERR_clear_error();
  SSL_shutdown(ssl_.get());
  shutdown(fd(), SHUT_WR);
}

void TlsStream::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) failure_ = reason;
  shutdown(fd(), SHUT_RDWR);
}

}  // namespace trireme
