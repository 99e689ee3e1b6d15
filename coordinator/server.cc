// SPDX-License-Identifier: Apache-2.0
#include "coordinator/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "coordinator/private_file.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr int kMaxStreamsPerConnection = 256;
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kHandshakeTimeoutMs = 10000;
// Pings find a client whose host or network is gone: its streams end after both times.
constexpr int kKeepaliveMs = 20000;
constexpr int kKeepaliveTimeoutMs = 10000;
constexpr size_t kMemoryBytes = size_t{1} << 30;
// For refusals that are on their way when the server goes; without it a client on an old connection
// was seen to wait for ever. A call that comes later still can end as CANCELLED.
constexpr std::chrono::milliseconds kLastAnswers{200};
// Reflection is served by threads, a stream each; everything else by callbacks.
constexpr int kMaxReflectionThreads = 8;

[[noreturn]] void cannot_listen(const std::string& address, const std::string& why) {
  throw Error(Code::kFailedPrecondition,
              "cannot listen on " + address + ": " + why +
                  "; choose another address with --listen (port 0 takes any free port)");
}

std::shared_ptr<grpc::ServerCredentials> make_credentials(const ServerOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    throw Error(Code::kInvalidArgument,
                "cannot use TLS: --tls_cert and --tls_key belong together; give both");
  }
  if (options.tls_cert.empty()) {
    if (!options.tls_client_ca.empty()) {
      throw Error(Code::kInvalidArgument,
                  "cannot use --tls_client_ca without TLS: give --tls_cert and --tls_key too");
    }
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions ssl(
      options.tls_client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                    : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_key_cert_pairs.push_back({read_flag_file(options.tls_key, "--tls_key"),
                                    read_flag_file(options.tls_cert, "--tls_cert")});
  if (!options.tls_client_ca.empty()) {
    ssl.pem_root_certs = read_flag_file(options.tls_client_ca, "--tls_client_ca");
  }
  return grpc::SslServerCredentials(ssl);
}

// A socket file that nobody answers on is left from a server that was killed. gRPC would also take
// away one that is in use.
void clear_stale_socket(const ListenAddress& address) {
  struct stat status {};
  if (lstat(address.path.c_str(), &status) != 0) return;
  if (!S_ISSOCK(status.st_mode)) {
    cannot_listen(address.to_string(), "a file that is no socket is there");
  }
  sockaddr_un peer{};
  peer.sun_family = AF_UNIX;
  std::memcpy(peer.sun_path, address.path.c_str(), address.path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool answered = connect(fd, reinterpret_cast<const sockaddr*>(&peer), sizeof peer) == 0;
  const int error = errno;
  close(fd);
  if (answered) cannot_listen(address.to_string(), "another server answers there");
  if (error != ECONNREFUSED) cannot_listen(address.to_string(), std::strerror(error));
}

// gRPC does not say why it could not bind; the kernel does, when it is asked once more.
std::string why_not_bound(const ListenAddress& address) {
  if (address.is_unix) {
    const std::string folder = address.path.substr(0, address.path.find_last_of('/') + 1);
    return access(folder.empty() ? "." : folder.c_str(), W_OK) == 0
               ? "the socket could not be made"
               : std::string("its folder: ") + std::strerror(errno);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int problem =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (problem != 0) return gai_strerror(problem);
  std::string why = "gRPC could not bind it; see its line above";
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, found->ai_addr, found->ai_addrlen) != 0) why = std::strerror(errno);
  close(fd);
  freeaddrinfo(found);
  return why;
}

void set_limits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // With SO_REUSEPORT a second server on the same port would take half of the calls in silence.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetResourceQuota(
      grpc::ResourceQuota("trireme").Resize(kMemoryBytes).SetMaxThreads(kMaxReflectionThreads));
}

// A wildcard is no address that a client could use: the name of this machine stands for it.
std::string reachable(const ListenAddress& bound) {
  if (bound.host != "0.0.0.0" && bound.host != "::") return bound.to_string();
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return ListenAddress{false, "", name, bound.port}.to_string();
}

}  // namespace

Server::Server(const ServerOptions& options, Service& service)
    : options_(options), listen_(parse_listen(options.listen)), service_(service) {
  const bool tls = !options.tls_cert.empty();
  check_exposure(listen_, {options.has_token, tls, tls && !options.tls_client_ca.empty(),
                           options.allow_insecure});
  // Known at once, and not when the model has been loaded.
  if (!options_.address_file.empty()) require_writable(options_.address_file, "--address_file");
  const auto credentials = make_credentials(options);
  if (listen_.is_unix) clear_stale_socket(listen_);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  set_limits(builder);
  for (grpc::Service* const one : service.grpc_services()) builder.RegisterService(one);
  int port = 0;
  builder.AddListeningPort(listen_.to_string(), credentials, &port);

  // The socket file is born private: chmod would come too late for who connects in between.
  const mode_t before = umask(0177);
  server_ = builder.BuildAndStart();
  umask(before);
  if (server_ == nullptr) cannot_listen(listen_.to_string(), why_not_bound(listen_));
  if (!listen_.is_unix) listen_.port = static_cast<uint16_t>(port);
  address_ = reachable(listen_);
  // Whoever waits for the file must not find that of the server before.
  if (!options_.address_file.empty()) unlink(options_.address_file.c_str());

  // gRPC tells its watchers again what they know, so only changes are said.
  service.set_health_listener([this, said = std::optional<bool>()](bool serving) mutable {
    if (said == serving) return;
    said = serving;
    grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
    health.SetServingStatus(serving);
    for (const char* name : {"trireme.v1.Inference", "trireme.v1.Cluster"}) {
      health.SetServingStatus(name, serving);
    }
  });
  service.refresh_health();
}

Server::~Server() { shutdown(kLastAnswers); }

void Server::publish_address() const {
  if (options_.address_file.empty()) return;
  write_private_file(options_.address_file, address_ + "\n", "--address_file");
}

void Server::shutdown(std::chrono::milliseconds grace) {
  if (server_ == nullptr) return;
  service_.set_health_listener(nullptr);
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_.reset();
  if (!options_.address_file.empty()) unlink(options_.address_file.c_str());
}

}  // namespace trireme
