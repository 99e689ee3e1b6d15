// SPDX-License-Identifier: Apache-2.0
// Which way messages to another host take: by the connections that this process has, or else by the
// kernel's routes.
#pragma once

#include <string>
#include <vector>

#include "proto/preflight.pb.h"

namespace trireme {

// A TCP connection of this process.
struct OwnConnection {
  std::string local;   // numeric address
  std::string remote;  // numeric address
  int remote_port = 0;
};
std::vector<OwnConnection> own_connections();

// As interface_addresses(), but none is no error.
std::vector<std::string> reachable_addresses();

// The interface that has this address, or that the route to it leaves by; empty: none.
std::string interface_with(const std::string& address);
std::string interface_towards(const std::string& address);
// As its driver says; 0 where it does not.
double interface_bytes_per_s(const std::string& name);

// Transport and interface to a peer that was reached. `control_port`: whose connections are not
// those of tensors.
void describe_path(const LinkPeer& peer, const std::vector<OwnConnection>& connections,
                   int control_port, LinkFinding& finding);

}  // namespace trireme
