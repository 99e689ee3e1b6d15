// SPDX-License-Identifier: Apache-2.0
// `trireme probe`: what the machines are, by themselves or by files.
#pragma once

#include <string>
#include <vector>

#include "launch/options.h"
#include "proto/cluster.pb.h"
#include "topology/machine.h"

namespace trireme {

// Returns the exit status; throws Error for bad files and options.
int probe(const Options& options);

// What a person sees: devices, the matrix of ways between them, links by class, NICs, islands, what
// was marked and what is missing; within 100 columns.
std::string machine_tables(const Machine& machine);
std::string topology_tables(const Topology& topology);

}  // namespace trireme
