// SPDX-License-Identifier: Apache-2.0
// What the control groups of this process let it use: those of Slurm, of a container, of systemd.
// cgroups(7); cgroup-v1/memory and cgroup-v2 of the kernel's documentation.
#pragma once

#include <cstdint>
#include <string>

namespace trireme {

struct CgroupLimits {
  double cores = 0;                   // of CPU time per time, as a quota; 0: as many as there are
  uint64_t memory_left = UINT64_MAX;  // bytes until the nearest limit

  // How many of `cpus` cores' threads the quota lets run at once.
  int threads(int cpus) const;
};

// Of the process's groups and all above them, versions 1 and 2; what cannot be read limits nothing.
// root: where proc and sys are looked for, in tests another folder.
CgroupLimits cgroup_limits(const std::string& root = "/");

}  // namespace trireme
