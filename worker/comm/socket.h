// SPDX-License-Identifier: Apache-2.0
// TCP sockets of the control connections: non-blocking, closed on exec, without delay.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trireme {

// A file descriptor, closed with its owner.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

using TimePoint = std::chrono::steady_clock::time_point;

// Listens on a port of the kernel's choice, on 127.0.0.1 or on all interfaces. Throws kUnavailable.
FileDescriptor listen_for_workers(bool loopback_only);
uint16_t port_of(const FileDescriptor& listener);
// Numeric addresses of the interfaces that are up, IPv4 first, without loopback and link-local
// ones.
std::vector<std::string> interface_addresses();

// The next connection that waits, or none with errno set.
FileDescriptor accept_connection(const FileDescriptor& listener);
// A connection to a numeric address, or none with errno set.
FileDescriptor connect_socket(const std::string& host, uint16_t port, TimePoint deadline);
// Ends a connection whose peer acknowledges nothing for so long.
void limit_silence(const FileDescriptor& connection, std::chrono::milliseconds limit);

// Waits until the socket is ready for `events` of poll(); false when the deadline comes first.
bool wait_ready(int fd, short events, TimePoint deadline);

}  // namespace trireme
