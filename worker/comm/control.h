// SPDX-License-Identifier: Apache-2.0
// Control connections over TCP: both ends, and the framing between them (a 4-byte big-endian
// length, then a message). TLS 1.3 with a pre-shared key made of the job key: both ends prove that
// they have it. A connection's end means that the worker is dead.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "worker/comm/channel.h"

namespace trireme {

using JobKey = std::array<uint8_t, 32>;

// What a worker needs to find and believe the coordinator; travels once, by MPI.
struct ControlAddress {
  std::vector<std::string> hosts;  // numeric addresses of rank 0's interfaces, best first
  uint16_t port = 0;
  JobKey key{};

  std::string serialise() const;
  static ControlAddress parse(const std::string& bytes);  // throws kInvalidArgument
};

struct ControlLimits {
  std::chrono::milliseconds handshake{2000};  // until a peer has proved the key
  uint32_t unproved_frame_bytes = 256;
  uint32_t frame_bytes = 64u << 20;
  std::chrono::milliseconds heartbeat{200};
  std::chrono::milliseconds suspect_after{2000};
  std::chrono::milliseconds dead_after{10000};
};

// The coordinator's end: listens on a port that the kernel chose, on all ranks' side of the
// network. One thread of its own does all input and output.
class ControlServer : public Channel {
 public:
  ~ControlServer() override = default;
  virtual ControlAddress address() const = 0;
  // Waits until workers 1..num_workers have connected and proved the key. Throws kDeadlineExceeded
  // naming the ranks that are missing, with their hosts where `hosts` (by rank) has them.
  virtual void wait_for_workers(std::chrono::milliseconds timeout,
                                const std::vector<std::string>& hosts) = 0;
  void wait_for_workers(std::chrono::milliseconds timeout) { wait_for_workers(timeout, {}); }
  // Workers whose connection stands.
  virtual int connected() const = 0;
};

// loopback_only: every rank is on this host, so listen on 127.0.0.1.
std::unique_ptr<ControlServer> make_control_server(int num_workers, bool loopback_only,
                                                   const ControlLimits& limits);

// Connects, trying the addresses in order until `timeout`. One thread of its own receives, sends
// heartbeats and rings the doorbell.
std::unique_ptr<WorkerChannel> connect_control(const ControlAddress& address, int rank,
                                               std::chrono::milliseconds timeout,
                                               const ControlLimits& limits);

}  // namespace trireme
