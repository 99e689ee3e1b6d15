// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "kernels/base/error.h"

namespace trireme {
namespace {

[[noreturn]] void fail_to_listen(const char* step) {
  throw Error(Code::kUnavailable, std::string("cannot listen for workers: ") + step + ": " +
                                      std::system_category().message(errno));
}

// A socket bound to `address`, or none with errno set.
template <class Address>
FileDescriptor bind_socket(const Address& address) {
  const auto* const to = reinterpret_cast<const sockaddr*>(&address);
  FileDescriptor fd(socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return {};
  const int off = 0;
  if (to->sa_family == AF_INET6) {
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  return bind(fd.get(), to, sizeof(address)) == 0 ? std::move(fd) : FileDescriptor();
}

// Messages are small and awaited: none is held back for the next.
void send_at_once(const FileDescriptor& connection) {
  const int on = 1;
  setsockopt(connection.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

FileDescriptor listen_for_workers(bool loopback_only) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  FileDescriptor listener;
  // An IPv6 socket takes IPv4 as well, but a machine may lack IPv6.
  if (!loopback_only) listener = bind_socket(v6);
  if (!listener) listener = bind_socket(v4);
  if (!listener) fail_to_listen("bind");
  if (listen(listener.get(), SOMAXCONN) != 0) fail_to_listen("listen");
  return listener;
}

uint16_t port_of(const FileDescriptor& listener) {
  sockaddr_in6 address{};  // the port is at the same place in both families
  socklen_t size = sizeof(address);
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    fail_to_listen("getsockname");
  }
  return ntohs(address.sin6_port);
}

std::vector<std::string> interface_addresses() {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) fail_to_listen("getifaddrs");
  std::vector<std::string> v4, v6;
  for (const ifaddrs* i = first; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0 ||
        (i->ifa_flags & IFF_LOOPBACK) != 0) {
      continue;
    }
    char text[INET6_ADDRSTRLEN];
    if (i->ifa_addr->sa_family == AF_INET) {
      const auto* const in = reinterpret_cast<const sockaddr_in*>(i->ifa_addr);
      v4.emplace_back(inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text)));
    } else if (i->ifa_addr->sa_family == AF_INET6) {
      const auto* const in = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&in->sin6_addr)) continue;
      v6.emplace_back(inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof(text)));
    }
  }
  freeifaddrs(first);
  v4.insert(v4.end(), v6.begin(), v6.end());
  if (v4.empty()) {
    throw Error(
        Code::kUnavailable,
        "cannot listen for workers of other hosts: no network interface but loopback is up");
  }
  return v4;
}

FileDescriptor accept_connection(const FileDescriptor& listener) {
  FileDescriptor connection(
      accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (connection) send_at_once(connection);
  return connection;
}

bool wait_ready(int fd, short events, TimePoint deadline) {
  constexpr int64_t kMostMs = 60'000;  // poll() counts in int
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd wait = {fd, events, 0};
    const int ready =
        ::poll(&wait, 1, static_cast<int>(std::clamp<int64_t>(left.count(), 0, kMostMs)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
    if (std::chrono::steady_clock::now() >= deadline) return false;
  }
}

FileDescriptor connect_socket(const std::string& host, uint16_t port, TimePoint deadline) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(port);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  const bool is_v4 = inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1;
  errno = EINVAL;
  if (!is_v4 && inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) != 1) return {};
  const auto* const to =
      is_v4 ? reinterpret_cast<const sockaddr*>(&v4) : reinterpret_cast<const sockaddr*>(&v6);
  FileDescriptor fd(socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return {};
  if (connect(fd.get(), to, is_v4 ? sizeof(v4) : sizeof(v6)) != 0) {
    if (errno != EINPROGRESS) return {};
    errno = ETIMEDOUT;
    if (!wait_ready(fd.get(), POLLOUT, deadline)) return {};
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    errno = error;
    if (error != 0) return {};
  }
  send_at_once(fd);
  return fd;
}

void limit_silence(const FileDescriptor& connection, std::chrono::milliseconds limit) {
  const auto silence = static_cast<unsigned>(limit.count());
  setsockopt(connection.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof(silence));
}

}  // namespace trireme
