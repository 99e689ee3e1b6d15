// SPDX-License-Identifier: Apache-2.0
// What comes before work: every rank states its facts, and rank 0 compares them. Bounded in time; a
// rank that is missing is named.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "launch/options.h"
#include "proto/micro_batch.pb.h"
#include "topology/machine.h"
#include "worker/comm/channel.h"

namespace trireme {

// What this rank says of itself. `mpi`: the library and its version.
Hello introduce(int rank, const Options& options, const std::string& mpi);

// Names for messages: "rank 3 on h2", or "rank 3" where `hosts` (by rank) does not have it.
std::string rank_name(int rank, const std::vector<std::string>& hosts);

// Where a rank runs: its host's name, and the id that its kernel drew when it booted; empty: not
// known.
struct Place {
  std::string host, boot_id;
};
// By rank. Throws kFailedPrecondition where two machines have one name: their ranks would count as
// those of one host, which share its memory and cores.
void require_names(const std::vector<Place>& places);

// Collects the hello of ranks 1..count and returns them, ascending. `own`: rank 0's statement;
// `hosts`: what is known of them already.
// Throws kDeadlineExceeded or kUnavailable naming who is missing or has ended, kFailedPrecondition
// for ranks that disagree, naming field, values, ranks and hosts.
std::vector<Hello> greet(Channel& channel, int count, const Hello& own,
                         const std::vector<std::string>& hosts, std::chrono::milliseconds timeout);

// A sentence where the CPU ranks of a host may run on half of its cores or fewer: launchers bind
// unless they are told not to, Open MPI to one core each. Empty: nowhere.
std::string describe_unused_cores(const Topology& topology, const std::vector<Machine>& machines);

// Throws kUnavailable for an event that ends a start: a rank's end, or its failure.
void require_life(const ChannelEvent& event, const std::vector<std::string>& hosts);

}  // namespace trireme
