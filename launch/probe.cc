// SPDX-License-Identifier: Apache-2.0
#include "launch/probe.h"

#include <algorithm>
#include <iostream>

#include "kernels/base/error.h"
#include "launch/plan.h"
#include "launch/workers.h"
#include "topology/machine_topology.h"
#include "topology/nccl_xml.h"
#include "topology/probe.h"
#include "topology/probe_machine.h"
#include "topology/topology.h"

namespace trireme {
namespace {

// Every node of the job; where there are GPUs they are the devices, else the ranks are.
Topology probe_job(const Options& options, std::vector<Machine>& machines) {
  const auto workers = form_workers(options);
  machines = workers->machines();
  // Rank 0 may be alone on its host.
  const auto here = std::find_if(machines.begin(), machines.end(), [](const Machine& machine) {
    return machine.host == host_name();
  });
  if (here == machines.end()) machines.push_back(probe_machine(options.probe.sources));
  const bool any_gpu = std::any_of(machines.begin(), machines.end(),
                                   [](const Machine& machine) { return !machine.gpus.empty(); });
  return any_gpu ? topology_of(machines) : workers->topology();
}

void write_nccl_file(const std::vector<Machine>& machines, const std::string& path) {
  if (machines.size() != 1) {
    throw Error(Code::kInvalidArgument, "cannot write " + path +
                                            ": --nccl_xml describes one machine, found " +
                                            std::to_string(machines.size()));
  }
  write_flag_file(path, write_nccl_xml(machines[0]), "--nccl_xml");
}

}  // namespace

int probe(const Options& options) {
  constexpr size_t kMostMachines = 4;  // that are shown whole
  std::vector<Machine> machines;
  const Topology topology = options.probe.topology.empty()
                                ? probe_job(options, machines)
                                : read_topology_files(options.probe.topology, &machines);
  if (!options.probe.nccl_xml.empty()) write_nccl_file(machines, options.probe.nccl_xml);
  if (options.probe.json) {
    std::cout << topology_to_json(topology) << '\n';
    return 0;
  }
  if (machines.size() <= kMostMachines) {
    for (const Machine& machine : machines) std::cout << machine_tables(machine);
  }
  std::cout << topology_tables(topology);
  return 0;
}

}  // namespace trireme
