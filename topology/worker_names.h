// SPDX-License-Identifier: Apache-2.0
// What users call workers, in --max_memory and in device maps.
#pragma once

#include <string>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

// Indices into topology.ranks() of the workers called `name`; empty: nobody is.
//   "3", "cuda:3"  worker 3, from 0
//   "node7:1"      the second worker of host node7
//   "cpu"          every worker that is a CPU
std::vector<int> workers_named(const Topology& topology, const std::string& name);

// Whether `worker` is one of them, without a look at all the others where it can be seen so.
bool is_called(const Topology& topology, int worker, const std::string& name);

// "0 to 7, HOST:0 (the first of a host) or cpu", for messages.
std::string known_worker_names(const Topology& topology);

// The worker of this rank, or -1.
int worker_of(const Topology& topology, int32_t rank);

}  // namespace trireme
