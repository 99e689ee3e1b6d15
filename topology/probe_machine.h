// SPDX-License-Identifier: Apache-2.0
// This machine, from every source that it has. Each may be absent: what is missing is said in
// Machine::missing, with the reason.
#pragma once

#include <string>

#include "topology/machine.h"

namespace trireme {

struct ProbeSources {
  std::string root = "/";                          // where sys/ and proc/ are
  std::string nvml_library = "libnvidia-ml.so.1";  // what dlopen() finds
  std::string kernel_log = "/dev/kmsg";
};

// The machine, completed.
Machine probe_machine(const ProbeSources& sources);

// NUMA nodes, the PCI tree, GPUs and NICs by their PCI class, InfiniBand ports, GPUDirect RDMA.
void probe_sysfs(const std::string& root, Machine& machine);

// The driver's view of each GPU: memory, NVLinks, fabric, clocks, heat, errors. A query that fails
// loses its own field only.
void probe_nvml(const std::string& library, Machine& machine);

// XIDs that the NVIDIA driver reported.
void probe_kernel_log(const std::string& path, Machine& machine);

}  // namespace trireme
