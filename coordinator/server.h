// SPDX-License-Identifier: Apache-2.0
// The one port that clients see: binds it, keeps strangers out, and answers health and reflection
// beside the service.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "coordinator/auth.h"
#include "coordinator/service.h"

namespace trireme {

struct ServerOptions {
  std::string listen = "127.0.0.1:50051";  // HOST:PORT (port 0: any), [IPv6]:PORT or unix:PATH
  std::string address_file;                // where publish_address() writes; empty: nowhere
  std::string tls_cert, tls_key;           // PEM files; both or none
  std::string tls_client_ca;               // PEM file: clients must show a certificate of this CA
  bool has_token = false;                  // the service asks for one
  bool allow_insecure = false;
};

// Requests and replies larger than this are refused by gRPC with RESOURCE_EXHAUSTED.
inline constexpr int kMaxMessageBytes = 4 << 20;

class Server {
 public:
  // Binds and answers at once. Throws kInvalidArgument (options), kNotFound (a TLS file) or
  // kFailedPrecondition (the address is taken, --address_file cannot be written). `service` must
  // outlive this; its health listener is set here.
  Server(const ServerOptions& options, Service& service);
  ~Server();  // shutdown(), with a moment for refusals that are on their way
  Server(const Server&) = delete;

  // As clients reach it, with the port that the kernel chose.
  const std::string& address() const { return address_; }
  // Writes the address to --address_file: whole or not at all, for the owner's eyes.
  void publish_address() const;
  // Ends all calls that are open after `grace`. Idempotent.
  void shutdown(std::chrono::milliseconds grace);

 private:
  ServerOptions options_;
  ListenAddress listen_;
  std::string address_;
  Service& service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace trireme
