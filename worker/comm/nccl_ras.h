// SPDX-License-Identifier: Apache-2.0
// What NCCL's own watch over a job says (RAS, from 2.24 on): a process of each host answers on a
// port of its loopback interface.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

struct NcclRasAddress {
  std::vector<std::string> hosts{"127.0.0.1", "::1"};  // numeric, tried in turn; none: RAS is off
  uint16_t port = 28028;
};

// By NCCL_RAS_ENABLE and NCCL_RAS_ADDR, where they are among these variables. A host that is
// neither numeric nor localhost counts as none: to resolve a name may take long.
NcclRasAddress nccl_ras_address(const google::protobuf::Map<std::string, std::string>& variables);

// Its report on all communicators of the job, at most 8 KiB, fit for a log; empty where nobody
// answers within `timeout`, or `give_up` says so before. Never throws: it is asked when something
// else has failed.
std::string read_nccl_ras(const NcclRasAddress& address, std::chrono::milliseconds timeout,
                          const std::function<bool()>& give_up = {});

// What a report finds wrong, on one line of at most 1,000 bytes: ranks and processes that are
// missing or dead, and where ranks of a communicator differ. Empty: nothing.
std::string nccl_ras_faults(const std::string& report);

}  // namespace trireme
