// SPDX-License-Identifier: Apache-2.0
// Who may connect and who may call. No gRPC here: addresses, files and strings only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trireme {

// --listen: "HOST:PORT", "[IPv6]:PORT" or "unix:PATH".
struct ListenAddress {
  bool is_unix = false;
  std::string path;  // of a unix socket
  std::string host;  // without brackets
  uint16_t port = 0;

  std::string to_string() const;
};

// Throws kInvalidArgument naming what is wrong with `text`.
ListenAddress parse_listen(const std::string& text);

// Only processes of this machine can reach it.
bool is_local(const ListenAddress& address);

// What keeps strangers out.
struct Protection {
  bool token = false;
  bool tls = false;
  bool client_ca = false;       // TLS that asks for the client's certificate
  bool allow_insecure = false;  // the operator said so
};

// Throws kInvalidArgument where others of the network could call without proof or listen in: beyond
// this machine it takes TLS, and a token or client certificates.
void check_exposure(const ListenAddress& address, const Protection& protection);

// The token in a file, white space around it dropped. Throws kNotFound; kFailedPrecondition if
// others of this machine may read the file, or if it holds no token of 16 to 4096 printable
// characters.
std::string read_token_file(const std::string& path);

// Whether the value of an `authorization` header is "Bearer " and the token. Takes the same time
// wherever they differ.
bool bearer_matches(std::string_view header, std::string_view token);

}  // namespace trireme
