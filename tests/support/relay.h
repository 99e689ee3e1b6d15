// SPDX-License-Identifier: Apache-2.0
// A TCP relay in front of a server: destroying it is a client that vanishes without a word.
#pragma once

#include <atomic>
#include <string>
#include <thread>

namespace trireme {

class Relay {
 public:
  // For one connection to `target`, "127.0.0.1:PORT".
  explicit Relay(const std::string& target);
  ~Relay();  // closes both sides
  Relay(const Relay&) = delete;

  const std::string& address() const { return address_; }

 private:
  void run(int target_port);

  int listener_ = -1;
  std::string address_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace trireme
