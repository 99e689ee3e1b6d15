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

// Names for messages: "rank 3 on h2", or "rank 3" where `hosts` (by rank) does not have it.
std::string rank_name(int rank, const std::vector<std::string>& hosts);

// Collects the hello of ranks 1..count and returns them, ascending. `own`: rank 0's statement;
// `hosts`: what is known of them already.
// Throws kDeadlineExceeded or kUnavailable naming who is missing or has ended, kFailedPrecondition
// for ranks that disagree, naming field, values, ranks and hosts.
std::vector<Hello> greet(Channel& channel, int count, const Hello& own,
                         const std::vector<std::string>& hosts, std::chrono::milliseconds timeout);

// Throws kUnavailable for an event that ends a start: a rank's end, or its failure.
void require_life(const ChannelEvent& event, const std::vector<std::string>& hosts);

}  // namespace trireme
