// SPDX-License-Identifier: Apache-2.0
// The way between two devices of one machine, in the classes of `nvidia-smi topo -m`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "topology/machine.h"

namespace trireme {

struct DevicePath {
  LinkClass link_class = LINK_CLASS_UNSPECIFIED;
  int32_t links = 0;  // NVL: NVLinks (or xGMI links) between the two
  bool xgmi = false;
  double bytes_per_s = 0;  // nominal, in one direction
};

// Between the GPUs at two indexes. Through NVSwitches it has the links of the GPU with the fewer.
DevicePath gpu_path(const Machine& machine, size_t a, size_t b);

// From a GPU to a NIC. A NIC of no known place is as far as can be: SYS.
DevicePath nic_path(const Machine& machine, size_t gpu, const Nic& nic);

// Indexes of the NICs that are nearest to a GPU: hardware, not down.
std::vector<size_t> nearest_nics(const Machine& machine, size_t gpu);

// "NV18", "XG1", "PIX".
std::string path_name(const DevicePath& path);

// What `path` gives, as a message.
LinkSpeed link_speed(const DevicePath& path);

}  // namespace trireme
