// SPDX-License-Identifier: Apache-2.0
#include "coordinator/auth.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokenBytes = 4096;

[[noreturn]] void bad_listen(const std::string& text, const std::string& found) {
  throw Error(Code::kInvalidArgument, "cannot listen on \"" + text + "\": " + found +
                                          "; --listen takes HOST:PORT, [IPv6]:PORT or unix:PATH");
}

bool is_loopback(const std::string& host) {
  if (host == "localhost") return true;
  in_addr v4{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6{};
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

using Digest = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

Digest digest(std::string_view text) {
  Digest result;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), result.data());
  return result;
}

// At most kMaxTokenBytes + 2 bytes: enough to see that a file is too long.
std::string read_private_file(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    throw Error(Code::kNotFound, "cannot read --token_file " + path + ": " + std::strerror(errno));
  }
  // Of the open file, so that it cannot be another one than the one that is read.
  struct stat status {};
  std::string text(kMaxTokenBytes + 2, '\0');
  const bool known = fstat(fd, &status) == 0;
  const ssize_t length = known ? read(fd, text.data(), text.size()) : -1;
  const int error = errno;
  close(fd);
  if (length < 0) {
    throw Error(Code::kNotFound, "cannot read --token_file " + path + ": " + std::strerror(error));
  }
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    throw Error(Code::kFailedPrecondition,
                "cannot use --token_file " + path +
                    ": others than its owner have access to it; chmod 600 it");
  }
  text.resize(static_cast<size_t>(length));
  return text;
}

}  // namespace

std::string ListenAddress::to_string() const {
  if (is_unix) return "unix:" + path;
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? '[' + host + ']' : host) + ':' + std::to_string(port);
}

ListenAddress parse_listen(const std::string& text) {
  ListenAddress address;
  if (text.starts_with("unix:")) {
    address.is_unix = true;
    address.path = text.substr(5);
    if (address.path.empty()) bad_listen(text, "the path of the socket is missing");
    // sockaddr_un has room for 108 bytes with the final zero.
    if (address.path.size() > 107) bad_listen(text, "the path is longer than 107 bytes");
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) bad_listen(text, "the port is missing");
  address.host = text.substr(0, colon);
  if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    bad_listen(text, "an IPv6 address needs brackets");
  }
  if (address.host.empty()) bad_listen(text, "the host is missing (0.0.0.0 for every interface)");
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || stop != end)
    bad_listen(text, "the port is not a number of 0 to 65535");
  return address;
}

bool is_local(const ListenAddress& address) { return address.is_unix || is_loopback(address.host); }

void check_exposure(const ListenAddress& address, const Protection& protection) {
  if (is_local(address) || protection.allow_insecure) return;
  if (protection.tls && (protection.token || protection.client_ca)) return;
  throw Error(
      Code::kInvalidArgument,
      "cannot listen on " + address.to_string() + ": others can reach it, and " +
          (protection.tls ? "nothing says who may call" : "what they send would not be encrypted") +
          "; give --tls_cert and --tls_key, and --token_file or --tls_client_ca, or listen on "
          "127.0.0.1, or say --allow_insecure");
}

std::string read_token_file(const std::string& path) {
  std::string token = read_private_file(path);
  const auto is_space = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  token.erase(std::find_if_not(token.rbegin(), token.rend(), is_space).base(), token.end());
  token.erase(token.begin(), std::find_if_not(token.begin(), token.end(), is_space));
  const bool printable =
      std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (token.size() < kMinTokenBytes || token.size() > kMaxTokenBytes || !printable) {
    throw Error(Code::kFailedPrecondition,
                "cannot use --token_file " + path + ": it must hold one token of " +
                    std::to_string(kMinTokenBytes) + " to " + std::to_string(kMaxTokenBytes) +
                    " printable characters; make one with: openssl rand -hex 32");
  }
  return token;
}

bool bearer_matches(std::string_view header, std::string_view token) {
  constexpr std::string_view kScheme = "Bearer ";
  if (header.size() < kScheme.size() ||
      strncasecmp(header.data(), kScheme.data(), kScheme.size()) != 0) {
    return false;
  }
  // Digests have one length whatever the token's is.
  const Digest given = digest(header.substr(kScheme.size()));
  const Digest wanted = digest(token);
  return CRYPTO_memcmp(given.data(), wanted.data(), wanted.size()) == 0;
}

}  // namespace trireme
