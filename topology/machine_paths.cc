// SPDX-License-Identifier: Apache-2.0
#include "topology/machine_paths.h"

#include <algorithm>
#include <limits>

namespace trireme {
namespace {

constexpr double kPciPayload = 0.76;  // of the raw speed: 12 GB/s of a PCIe 3 x16
constexpr double kUnknownPci = 12e9;  // where no source says it
constexpr double kUnknownSocket = 10e9;

// What two sockets pass to each other, in one direction.
double socket_bytes_per_s(const NumaNode& node) {
  if (node.cpu_vendor == "AuthenticAMD") return 16e9;
  if (node.cpu_vendor == "GenuineIntel") {
    if (node.cpu_model >= 207) return 40e9;  // Emerald Rapids
    if (node.cpu_model >= 143) return 22e9;  // Sapphire Rapids
    return node.cpu_model >= 85 ? 10e9 : 6e9;
  }
  if (node.architecture.starts_with("ppc64")) return 32e9;
  return kUnknownSocket;
}

int32_t count_to_switches(const Gpu& gpu) {
  int32_t count = 0;
  for (const GpuLinks& links : gpu.links) {
    count += links.remote == Remote::kSwitch && links.kind == LinkKind::kNvLink ? links.count : 0;
  }
  return count;
}

// Switches of one machine are joined; a partition of them is a fabric of its own, and a GPU that
// has not registered is in none.
bool in_one_fabric(const Gpu& a, const Gpu& b) {
  for (const Gpu* gpu : {&a, &b}) {
    const std::string& state = gpu->health.fabric_state;
    if (state == "not started" || state == "in progress") return false;
  }
  return a.fabric_id.empty() || b.fabric_id.empty() || a.fabric_id == b.fabric_id;
}

// Links that a GPU has to another itself, and that both have to switches.
DevicePath fast_path(const Gpu& a, const Gpu& b) {
  DevicePath path;
  double one = nvlink_bytes_per_s(a);
  for (const GpuLinks& links : a.links) {
    if (links.kind == LinkKind::kC2c || links.remote != Remote::kGpu || links.target != b.pci_id) {
      continue;
    }
    path.links += links.count;
    path.xgmi = links.kind == LinkKind::kXgmi;
    if (links.bytes_per_s > 0) one = links.bytes_per_s;
  }
  if (path.links == 0 && in_one_fabric(a, b)) {
    path.links = std::min(count_to_switches(a), count_to_switches(b));
  }
  if (path.links > 0) {
    constexpr double kUnknownLink = 25e9;
    path.link_class = LINK_CLASS_NVL;
    path.bytes_per_s = path.links * (one > 0 ? one : kUnknownLink);
  }
  return path;
}

// The switches above a device, the nearest first.
std::vector<int32_t> switches_above(const Machine& machine, int32_t device) {
  std::vector<int32_t> above;
  for (int32_t at = machine.pci[static_cast<size_t>(device)].parent; at >= 0;
       at = machine.pci[static_cast<size_t>(at)].parent) {
    above.push_back(at);
  }
  return above;
}

LinkClass class_without_switch(const Machine& machine, const PciDevice& a, const PciDevice& b) {
  if (a.numa >= 0 && b.numa >= 0 && a.numa != b.numa) return LINK_CLASS_SYS;
  if (!a.root.empty() && !b.root.empty()) {
    if (a.root == b.root) return LINK_CLASS_PHB;
    const bool near = (a.numa == b.numa && a.numa >= 0) || machine.numa.size() <= 1;
    return near ? LINK_CLASS_NODE : LINK_CLASS_SYS;
  }
  // NCCL's files name the CPU and not its host bridges.
  return a.numa == b.numa ? LINK_CLASS_PHB : LINK_CLASS_SYS;
}

DevicePath pci_path(const Machine& machine, int32_t from, int32_t to) {
  const auto device = [&](int32_t index) -> const PciDevice& {
    return machine.pci[static_cast<size_t>(index)];
  };
  DevicePath path;
  double least = std::numeric_limits<double>::infinity();
  const auto pass = [&](int32_t index) {
    const double speed = pci_bytes_per_s(device(index).link);
    // Virtual bridges claim less than what goes through them.
    if (speed > 0 && device(index).device_class >> 8 != 0x0604) least = std::min(least, speed);
  };
  pass(from);
  pass(to);
  const auto above = switches_above(machine, from), other = switches_above(machine, to);
  size_t crossed = 0;
  for (size_t i = 0; i < above.size() && crossed == 0; ++i) {
    const auto met = std::find(other.begin(), other.end(), above[i]);
    if (met != other.end()) crossed = i + 1 + static_cast<size_t>(met - other.begin());
  }
  if (from == to || crossed == 1) {
    path.link_class = LINK_CLASS_PIX;
  } else if (crossed > 1) {
    path.link_class = LINK_CLASS_PXB;
  } else {
    path.link_class = class_without_switch(machine, device(from), device(to));
  }
  path.bytes_per_s =
      kPciPayload *
      (least < std::numeric_limits<double>::infinity() ? least : kUnknownPci / kPciPayload);
  if (path.link_class == LINK_CLASS_SYS) {
    const double socket =
        machine.numa.empty() ? kUnknownSocket : socket_bytes_per_s(machine.numa[0]);
    path.bytes_per_s = std::min(path.bytes_per_s, socket);
  }
  return path;
}

}  // namespace

DevicePath gpu_path(const Machine& machine, size_t a, size_t b) {
  const DevicePath fast = fast_path(machine.gpus[a], machine.gpus[b]);
  if (fast.links > 0) return fast;
  const int32_t from = machine.index_of(machine.gpus[a]);
  const int32_t to = machine.index_of(machine.gpus[b]);
  if (from < 0 || to < 0) return {LINK_CLASS_SYS, 0, false, kUnknownSocket};
  return pci_path(machine, from, to);
}

DevicePath nic_path(const Machine& machine, size_t gpu, const Nic& nic) {
  const int32_t from = machine.index_of(machine.gpus[gpu]);
  const int32_t to = machine.index_of(nic);
  DevicePath path{LINK_CLASS_SYS, 0, false, kUnknownSocket};
  if (from >= 0 && to >= 0) {
    path = pci_path(machine, from, to);
  } else if (from >= 0 && nic.numa >= 0 &&
             machine.pci[static_cast<size_t>(from)].numa == nic.numa) {
    path.link_class = LINK_CLASS_NODE;
  }
  if (nic.bits_per_s > 0) path.bytes_per_s = std::min(path.bytes_per_s, nic.bits_per_s / 8);
  return path;
}

std::vector<size_t> nearest_nics(const Machine& machine, size_t gpu) {
  std::vector<size_t> nearest;
  LinkClass best = LINK_CLASS_NET;
  for (size_t i = 0; i < machine.nics.size(); ++i) {
    const Nic& nic = machine.nics[i];
    if (nic.is_virtual || nic.state == Nic::State::kDown) continue;
    const LinkClass here = nic_path(machine, gpu, nic).link_class;
    if (here < best) nearest.clear();
    best = std::min(best, here);
    if (here == best) nearest.push_back(i);
  }
  return nearest;
}

std::string path_name(const DevicePath& path) {
  if (path.link_class == LINK_CLASS_NVL) {
    return (path.xgmi ? "XG" : "NV") + std::to_string(path.links);
  }
  return LinkClass_Name(path.link_class).substr(sizeof "LINK_CLASS_" - 1);
}

LinkSpeed link_speed(const DevicePath& path) {
  // Nominal: send and receive between GPUs of one box were measured at 7.6 to 13 us.
  constexpr double kMicroseconds[] = {12, 8, 8, 9, 9, 10, 11, 12, 30};
  LinkSpeed speed;
  speed.set_link_class(path.link_class);
  speed.set_latency_s(1e-6 * kMicroseconds[path.link_class]);
  speed.set_bandwidth_bytes_per_s(path.bytes_per_s);
  speed.set_nominal_bandwidth_bytes_per_s(path.bytes_per_s);
  if (path.link_class == LINK_CLASS_NVL) speed.set_nvlinks(path.links);
  return speed;
}

}  // namespace trireme
