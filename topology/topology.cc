// SPDX-License-Identifier: Apache-2.0
#include "topology/topology.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace trireme {

namespace {

void share_gpus(Topology& topology) {
  std::set<std::pair<std::string, std::string>> taken;  // host and PCI address
  for (RankInfo& rank : *topology.mutable_ranks()) {
    for (const DeviceInfo& gpu : rank.gpus()) {
      if (!taken.emplace(rank.host(), gpu.pci_id()).second) continue;
      *rank.mutable_device() = gpu;
      break;
    }
    rank.clear_gpus();
  }
}

}  // namespace

void share_nodes(Topology& topology, int32_t threads) {
  share_gpus(topology);
  std::map<std::string, int> ranks_of_host;
  std::map<std::pair<std::string, int>, int> ranks_of_core;
  for (const RankInfo& rank : topology.ranks()) {
    if (rank.device().kind() == DEVICE_KIND_CUDA) continue;
    ++ranks_of_host[rank.host()];
    for (const int cpu : rank.device().cpus()) ++ranks_of_core[{rank.host(), cpu}];
  }
  for (RankInfo& rank : *topology.mutable_ranks()) {
    DeviceInfo& device = *rank.mutable_device();
    if (device.kind() == DEVICE_KIND_CUDA) continue;
    double share = 0;
    for (const int cpu : device.cpus()) share += 1.0 / ranks_of_core[{rank.host(), cpu}];
    // A cgroup's quota may allow fewer cores than the affinity mask shows.
    if (device.cpus_size() > 0) share *= double(device.threads()) / device.cpus_size();
    device.set_threads(threads > 0 ? threads : std::max(1, static_cast<int32_t>(share + 1e-6)));
    device.set_memory_bytes(device.memory_bytes() / ranks_of_host[rank.host()]);
  }
}

std::string format_bytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace trireme
