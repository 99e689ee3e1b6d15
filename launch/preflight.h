// SPDX-License-Identifier: Apache-2.0
// What comes before work: every rank states its facts, and rank 0 compares them. Bounded in time; a
// rank that is missing is named.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "launch/options.h"
#include "proto/micro_batch.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

// What this rank says of itself. `mpi`: the library and its version.
Hello introduce(int rank, const Options& options, const std::string& mpi);

// Collects the hello of ranks 1..count; their information, ascending. `own`: rank 0's statement.
// Throws kDeadlineExceeded or kUnavailable naming who is missing or has ended, kFailedPrecondition
// for ranks that disagree, naming field, values, ranks and hosts.
Topology greet(Channel& channel, int count, const Hello& own, std::chrono::milliseconds timeout);

}  // namespace trireme
