// SPDX-License-Identifier: Apache-2.0
// Rank 0's part in measuring the links between workers: which pairs, when, and what was found.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

// A pair of workers that was measured; ranks a < b.
struct MeasuredLink {
  RankInfo a, b;
  LinkFinding finding;      // by a
  std::string interface_b;  // by which b's connection to a leaves; empty: not seen
};

// Has the workers reach each other, then measure pair by pair, and adds what they found to
// topology.links; prints it. Each of the two steps has at most `timeout`. Throws kUnavailable
// naming every pair that cannot connect, with hosts and interface, or kDeadlineExceeded naming the
// workers that do not report.
void measure_links(Channel& channel, const std::vector<Hello>& workers, int control_port,
                   std::chrono::milliseconds timeout, Topology& topology);

// The links as a table for people: a row for each pair of hosts, or of few kinds where hosts are
// many; latency and bandwidth from least to greatest, and the pairs far from their like by name.
std::string link_table(const std::vector<MeasuredLink>& links);

}  // namespace trireme
