// SPDX-License-Identifier: Apache-2.0
// What the CPU worker's own collectives cost a group whose ranks are on several hosts, of which
// nothing was measured but the links: worker/comm/host_communicator.h sends from everyone to
// everyone. Pure.
#pragma once

#include <vector>

#include "proto/cluster.pb.h"
#include "topology/link_graph.h"

namespace trireme {

struct HostGroup {
  int32_t size = 0;
  double latency_s = 0;        // of the farthest two
  double exchange_byte_s = 0;  // for each byte that everyone sends to everyone
  double gather_byte_s = 0;    // for each byte that everyone sends to the first
};

// REQUIRES: two workers or more, indices into topology.ranks.
HostGroup host_group(const Topology& topology, const LinkGraph& links,
                     const std::vector<int>& workers);

// Its all-reduces by bytes: one round, or two for what is scattered.
AllReduceRow all_reduce_row(const HostGroup& group);
// Everyone's `bytes` to the first, or the first's to everyone.
double gather_s(const HostGroup& group, double bytes);

}  // namespace trireme
