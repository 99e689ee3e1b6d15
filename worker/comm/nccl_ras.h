// SPDX-License-Identifier: Apache-2.0
// What NCCL's own watch over a job says (RAS, from 2.24 on): a process of each host answers on a
// port of its loopback interface.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace trireme {

constexpr uint16_t kNcclRasPort = 28028;  // NCCL_RAS_ADDR's default

// Its report on all communicators of the job, at most 8 KiB, fit for a log; empty where nobody
// answers within `timeout`. Never throws: it is asked when something else has failed.
std::string read_nccl_ras(uint16_t port, std::chrono::milliseconds timeout);

}  // namespace trireme
