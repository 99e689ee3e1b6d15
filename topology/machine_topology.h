// SPDX-License-Identifier: Apache-2.0
// From machines to the Topology that is planned with.
#pragma once

#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "topology/machine.h"

namespace trireme {

// Every GPU of the machines as a rank, from 1 on; islands, classes, NICs, and what was marked.
// Hosts of one name become name, name-2, …; a host that a fabric file names gives its switches to
// the machine of that name.
Topology topology_of(std::vector<Machine> machines);

// Adds what is known of a machine to a topology whose ranks are there already: its node, and, where
// its ranks are GPUs, their islands, NUMA nodes, rails and health.
void add_machine(Topology& topology, const Machine& machine);

// What two nodes pass to each other, from the rates of their NICs. Call once, after all machines.
void add_network(Topology& topology);

// Topologies and machine files, whatever their kind, as one. Throws kNotFound or kInvalidArgument
// naming the file. `described` gets the machines, where it is given.
Topology read_topology_files(const std::vector<std::string>& paths,
                             std::vector<Machine>* described = nullptr);

// The machines that the ranks reported (RankInfo.machine, which is cleared), one for each host;
// they are added to the topology, and the network between them.
std::vector<Machine> join_machines(Topology& topology);

// The fields of a GPU as a rank's device.
DeviceInfo device_info(const Machine& machine, size_t gpu);

}  // namespace trireme
