// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/network.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>

#include "kernels/base/error.h"
#include "topology/probe.h"
#include "worker/comm/socket.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::string numeric(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof text);
  } else if (address->sa_family == AF_INET6) {
    const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
    const bool mapped = IN6_IS_ADDR_V4MAPPED(&v6);
    inet_ntop(mapped ? AF_INET : AF_INET6, v6.s6_addr + (mapped ? 12 : 0), text, sizeof text);
  }
  return text;
}

// "0100007F:1F90": words of the address as this machine stores them, and the port.
std::optional<std::pair<std::string, int>> parse_end(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon != 8 && colon != 32) return std::nullopt;
  sockaddr_in6 v6{};
  sockaddr_in v4{};
  auto* const to =
      colon == 8 ? reinterpret_cast<char*>(&v4.sin_addr) : reinterpret_cast<char*>(&v6.sin6_addr);
  for (size_t at = 0; at < colon; at += 8) {
    const auto word = static_cast<uint32_t>(std::strtoul(text.substr(at, 8).c_str(), nullptr, 16));
    std::memcpy(to + at / 2, &word, sizeof word);
  }
  v4.sin_family = AF_INET;
  v6.sin6_family = AF_INET6;
  const auto port = static_cast<int>(std::strtoul(text.c_str() + colon + 1, nullptr, 16));
  return std::pair(numeric(colon == 8 ? reinterpret_cast<const sockaddr*>(&v4)
                                      : reinterpret_cast<const sockaddr*>(&v6)),
                   port);
}

std::set<std::string> own_sockets() {
  std::set<std::string> inodes;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd", error)) {
    const std::string target = fs::read_symlink(entry.path(), error).string();
    if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
  }
  return inodes;
}

}  // namespace

std::vector<OwnConnection> own_connections() {
  const std::set<std::string> inodes = own_sockets();
  std::vector<OwnConnection> connections;
  for (const char* const table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream file(table);
    std::string line;
    std::getline(file, line);  // the header
    while (std::getline(file, line)) {
      std::istringstream words(line);
      std::string slot, local, remote, state, queues, timer, retries, user, timeout, inode;
      words >> slot >> local >> remote >> state >> queues >> timer >> retries >> user >> timeout >>
          inode;
      if (state != "01" || !inodes.contains(inode)) continue;  // 01: established
      const auto here = parse_end(local);
      const auto there = parse_end(remote);
      if (here && there) connections.push_back({here->first, there->first, there->second});
    }
  }
  return connections;
}

std::vector<std::string> reachable_addresses() {
  try {
    return interface_addresses();
  } catch (const Error&) {
    return {};
  }
}

std::string interface_with(const std::string& address) {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return "";
  std::string name;
  for (const ifaddrs* i = first; i != nullptr && name.empty(); i = i->ifa_next) {
    if (i->ifa_addr != nullptr && numeric(i->ifa_addr) == address) name = i->ifa_name;
  }
  freeifaddrs(first);
  return name;
}

// Connecting a datagram socket asks for the route and sends nothing.
std::string interface_towards(const std::string& address) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v4.sin_port = v6.sin6_port = htons(9);
  const bool is_v4 = inet_pton(AF_INET, address.c_str(), &v4.sin_addr) == 1;
  if (!is_v4 && inet_pton(AF_INET6, address.c_str(), &v6.sin6_addr) != 1) return "";
  const auto* const to =
      is_v4 ? reinterpret_cast<const sockaddr*>(&v4) : reinterpret_cast<const sockaddr*>(&v6);
  const FileDescriptor fd(socket(to->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd || connect(fd.get(), to, is_v4 ? sizeof v4 : sizeof v6) != 0) return "";
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local), &size) != 0) return "";
  return interface_with(numeric(reinterpret_cast<const sockaddr*>(&local)));
}

double interface_bytes_per_s(const std::string& name) {
  std::ifstream file("/sys/class/net/" + name + "/speed");
  double megabits = 0;
  return file >> megabits && megabits > 0 ? megabits * 1e6 / 8 : 0;
}

void describe_path(const LinkPeer& peer, const std::vector<OwnConnection>& connections,
                   int control_port, LinkFinding& finding) {
  if (peer.host() == host_name()) {
    finding.set_transport("shared memory");
    return;
  }
  finding.set_transport("MPI");
  for (const OwnConnection& connection : connections) {
    const bool theirs =
        std::ranges::find(peer.addresses(), connection.remote) != peer.addresses().end();
    if (!theirs || connection.remote_port == control_port) continue;
    finding.set_transport("TCP");
    finding.set_interface(interface_with(connection.local));
  }
  for (const std::string& address : peer.addresses()) {
    if (!finding.interface().empty()) break;
    finding.set_interface(interface_towards(address));
  }
  finding.set_interface_bytes_per_s(interface_bytes_per_s(finding.interface()));
}

}  // namespace trireme
