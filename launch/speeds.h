// SPDX-License-Identifier: Apache-2.0
// Rank 0's part in measuring devices and all-reduces within nodes: who measures, what was found,
// and what is known from an earlier start.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "topology/nccl_settings.h"
#include "worker/comm/channel.h"

namespace trireme {

struct SpeedOptions {
  std::string isa = "auto";
  std::string build;         // speeds of another build, or of ranks that are threads, are others
  bool anew = false;         // whatever is known
  bool told = true;          // on stderr
  bool one_process = false;  // ranks are threads of this one
  std::string file;          // where speeds are kept; empty: nowhere
  std::chrono::milliseconds timeout{60000};
};

// Has the workers of nodes that are not known measure, puts the speeds of all into the topology and
// tells them. Returns by rank what NCCL was told to use before: it keeps to that in processes that
// measured, so all must; empty where it was not used. Throws kUnavailable for a worker that fails,
// kDeadlineExceeded naming those that do not report, kInternal for one that reports what cannot be.
std::map<int, NcclSettings> measure_speeds(Channel& channel, const SpeedOptions& options,
                                           Topology& topology);

// Devices by kind and host: what their memory and matrices reach, and what an all-reduce takes.
std::string speed_table(const Topology& topology);

}  // namespace trireme
