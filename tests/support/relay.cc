// SPDX-License-Identifier: Apache-2.0
#include "tests/support/relay.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernels/base/check.h"

namespace trireme {
namespace {

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// False: one side has ended.
bool pass_on(int from, int to) {
  char bytes[16384];
  const ssize_t length = read(from, bytes, sizeof bytes);
  return length > 0 && send(to, bytes, static_cast<size_t>(length), MSG_NOSIGNAL) == length;
}

}  // namespace

Relay::Relay(const std::string& target) {
  listener_ = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  CHECK(bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
            listen(listener_, 1) == 0 &&
            getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0,
        "no port for the relay");
  address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const int port = std::stoi(target.substr(target.rfind(':') + 1));
  thread_ = std::thread([this, port] { run(port); });
}

Relay::~Relay() {
  ending_ = true;
  thread_.join();
  close(listener_);
}

void Relay::run(int target_port) {
  pollfd waiting{listener_, POLLIN, 0};
  while (!ending_ && poll(&waiting, 1, 10) == 0) {
  }
  if (ending_) return;
  const int client = accept(listener_, nullptr, nullptr);
  const int server = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = loopback(target_port);
  bool open = connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  while (open && !ending_) {
    pollfd sides[] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
    poll(sides, 2, 10);
    if (sides[0].revents != 0) open = pass_on(client, server);
    if (open && sides[1].revents != 0) open = pass_on(server, client);
  }
  close(client);
  close(server);
}

}  // namespace trireme
