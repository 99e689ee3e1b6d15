// SPDX-License-Identifier: Apache-2.0
// What no source is believed in blindly: links that cannot be, devices far under their siblings.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "topology/machine.h"
#include "topology/machine_health.h"

namespace trireme {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

int32_t count_links(const Gpu& gpu, LinkKind kind) {
  int32_t count = 0;
  for (const GpuLinks& links : gpu.links) count += links.kind == kind ? links.count : 0;
  return count;
}

void degrade(Gpu& gpu, const std::string& reason) {
  gpu.degraded += (gpu.degraded.empty() ? "" : "; ") + reason;
}

// Of one of the links together; 0: all are as their generation has them.
double mean_speed(const Gpu& gpu, const GpuLinks& a, const GpuLinks& b) {
  if (a.bytes_per_s == b.bytes_per_s || a.count + b.count == 0) return a.bytes_per_s;
  const auto sum = [&](const GpuLinks& links) {
    return links.count * (links.bytes_per_s > 0 ? links.bytes_per_s : nvlink_bytes_per_s(gpu));
  };
  return (sum(a) + sum(b)) / (a.count + b.count);
}

// Several entries for one other end become one; one that leads back is none.
void merge_links(const Machine& machine, Gpu& gpu) {
  std::vector<GpuLinks> merged;
  for (GpuLinks& links : gpu.links) {
    if (links.target == gpu.pci_id) {
      gpu.notes.push_back(std::to_string(links.count) +
                          " links that lead to the GPU itself: left out");
      continue;
    }
    if (machine.find_gpu(links.target) >= 0) links.remote = Remote::kGpu;
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const GpuLinks& other) {
      return other.kind == links.kind && other.target == links.target &&
             other.remote == links.remote;
    });
    if (same == merged.end()) {
      merged.push_back(links);
    } else {
      same->bytes_per_s = mean_speed(gpu, *same, links);
      same->count += links.count;
    }
  }
  gpu.links = std::move(merged);
}

void drop_impossible(const Machine& machine, Gpu& gpu) {
  const int32_t most = max_nvlinks(machine, gpu);
  const int32_t claimed = count_links(gpu, LinkKind::kNvLink);
  if (most < 0 || claimed <= most) return;
  const std::string reason = std::to_string(claimed) + " NVLinks are claimed, " +
                             (gpu.name.empty() ? "a GPU of this generation" : "a " + gpu.name) +
                             " has " + (most == 0 ? "none" : std::to_string(most)) +
                             ": none of them is believed";
  gpu.notes.push_back(reason);
  degrade(gpu, reason);
  std::erase_if(gpu.links, [](const GpuLinks& links) { return links.kind == LinkKind::kNvLink; });
}

// What one GPU knows to be a switch is one for all.
void name_switches(Machine& machine) {
  constexpr uint32_t kNvSwitch = 0x0680;
  std::set<std::string> switches;
  for (const PciDevice& device : machine.pci) {
    if (device.device_class >> 8 == kNvSwitch) switches.insert(device.id);
  }
  for (const Gpu& gpu : machine.gpus) {
    for (const GpuLinks& links : gpu.links) {
      if (links.remote == Remote::kSwitch && !links.target.empty()) switches.insert(links.target);
    }
  }
  for (Gpu& gpu : machine.gpus) {
    for (GpuLinks& links : gpu.links) {
      if (links.remote == Remote::kUnknown && switches.contains(links.target)) {
        links.remote = Remote::kSwitch;
      }
    }
  }
}

// Both ends count the links between two GPUs: where they differ the lesser number is used.
void match_ends(Machine& machine) {
  std::map<std::pair<std::string, std::string>, int32_t> counts;
  for (const Gpu& gpu : machine.gpus) {
    for (const GpuLinks& links : gpu.links) {
      if (links.kind != LinkKind::kC2c) counts[{gpu.pci_id, links.target}] += links.count;
    }
  }
  for (Gpu& gpu : machine.gpus) {
    for (GpuLinks& links : gpu.links) {
      if (links.kind == LinkKind::kC2c || links.remote != Remote::kGpu) continue;
      const auto other = machine.find_gpu(links.target);
      if (other < 0) {
        gpu.notes.push_back("links to " + links.target + ", a GPU that is not described");
        continue;
      }
      const auto back = counts.find({links.target, gpu.pci_id});
      const int32_t there = back == counts.end() ? 0 : back->second;
      if (there >= links.count) continue;
      gpu.notes.push_back(std::to_string(links.count) + " links to " + links.target +
                          ", which has " + std::to_string(there) +
                          " back: " + std::to_string(there) + " used");
      links.count = there;
    }
    std::erase_if(gpu.links, [](const GpuLinks& links) { return links.count == 0; });
  }
}

const PciDevice* device_of(const Machine& machine, const Gpu& gpu) {
  const int32_t pci = machine.index_of(gpu);
  return pci < 0 ? nullptr : &machine.pci[static_cast<size_t>(pci)];
}

// GPUs that should be alike.
std::map<std::string, std::vector<Gpu*>> siblings(Machine& machine) {
  std::map<std::string, std::vector<Gpu*>> kinds;
  for (Gpu& gpu : machine.gpus) {
    const PciDevice* const pci = device_of(machine, gpu);
    const std::string kind = pci != nullptr && pci->device >= 0
                                 ? std::to_string(pci->device)
                                 : gpu.name + "/" + std::to_string(gpu.compute_capability);
    kinds[kind].push_back(&gpu);
  }
  return kinds;
}

void compare_links(Machine& machine, const std::vector<Gpu*>& alike) {
  int32_t most = 0;
  size_t known = 0;
  for (const Gpu* gpu : alike) {
    most = std::max(most, count_links(*gpu, LinkKind::kNvLink));
    known += gpu->links_known ? 1 : 0;
  }
  for (Gpu* gpu : alike) {
    const int32_t count = count_links(*gpu, LinkKind::kNvLink);
    // Where none has any, bridges that are an option were not bought.
    const int32_t expected = most == 0 ? 0 : std::max(most, count + gpu->links_down);
    gpu->links_expected = expected;
    if (!gpu->links_known || count >= expected) continue;
    degrade(*gpu, count == 0 ? "none of its " + std::to_string(expected) + " NVLinks is up"
                             : std::to_string(count) + " of " + std::to_string(expected) +
                                   " NVLinks are up");
  }
  const PciDevice* const pci = device_of(machine, *alike.front());
  const GpuModel* const model = pci == nullptr ? nullptr : find_gpu_model(pci->device);
  if (most == 0 && known == alike.size() && model != nullptr && model->wired) {
    machine.notes.push_back("no NVLink is up on any " + std::string(model->name) +
                            ", whose board has " + std::to_string(model->nvlinks) +
                            " for each: GPUs talk over PCIe");
  }
}

void compare_pci(const Machine& machine, const std::vector<Gpu*>& alike) {
  constexpr double kFarUnder = 0.7;
  double best = 0;
  for (const Gpu* gpu : alike) {
    const PciDevice* const pci = device_of(machine, *gpu);
    if (pci != nullptr) best = std::max(best, pci_bytes_per_s(pci->link));
  }
  for (Gpu* gpu : alike) {
    const PciDevice* const pci = device_of(machine, *gpu);
    if (pci == nullptr) continue;
    const double speed = pci_bytes_per_s(pci->link);
    if (pci->now.width > 0 && pci->now.width < pci->link.width) {
      degrade(*gpu, "PCIe runs with " + std::to_string(pci->now.width) + " lanes of " +
                        std::to_string(pci->link.width));
    } else if (speed > 0 && speed < kFarUnder * best) {
      degrade(*gpu,
              "PCIe has " + number(speed / 1e9) + " GB/s, its siblings' " + number(best / 1e9));
    }
  }
}

// The same port under several CPUs is one that is near to none.
void merge_nics(Machine& machine) {
  std::vector<Nic> merged;
  for (Nic& nic : machine.nics) {
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const Nic& other) {
      return other.name == nic.name && other.port == nic.port && other.guid == nic.guid &&
             other.pci_id == nic.pci_id;
    });
    if (same == merged.end()) {
      merged.push_back(std::move(nic));
    } else if (same->numa != nic.numa) {
      same->numa = -1;
      if (same->notes.empty()) same->notes.push_back("listed under several CPUs: near to none");
    }
  }
  machine.nics = std::move(merged);
}

// Ports slower than those of cards alike, and cards that PCIe cannot feed.
void compare_nics(Machine& machine) {
  constexpr double kFarUnder = 0.7, kPciPayload = 0.85;
  std::map<int32_t, double> best;  // of each kind of card
  const auto card = [&](const Nic& nic) -> const PciDevice* {
    const int32_t pci = nic.is_virtual ? -1 : machine.index_of(nic);
    return pci < 0 ? nullptr : &machine.pci[static_cast<size_t>(pci)];
  };
  for (const Nic& nic : machine.nics) {
    const PciDevice* const device = card(nic);
    if (device == nullptr || device->device < 0) continue;
    double& most = best[device->device];
    most = std::max(most, nic.bits_per_s);
  }
  for (Nic& nic : machine.nics) {
    const PciDevice* const device = card(nic);
    if (device == nullptr || nic.bits_per_s <= 0) continue;
    const auto most = best.find(device->device);
    if (most != best.end() && nic.bits_per_s < kFarUnder * most->second) {
      nic.notes.push_back("runs at " + number(nic.bits_per_s / 1e9) + " Gb/s, its siblings at " +
                          number(most->second / 1e9));
    }
    const double carried = 8 * kPciPayload * pci_bytes_per_s(device->link);
    if (carried > 0 && carried < kFarUnder * nic.bits_per_s) {
      nic.notes.push_back("its PCIe link carries " + number(carried / 1e9) + " Gb/s of " +
                          number(nic.bits_per_s / 1e9));
    }
  }
}

void check_cores(Machine& machine) {
  std::set<int32_t> seen;
  for (const NumaNode& node : machine.numa) {
    for (const int32_t core : node.cores) {
      if (seen.insert(core).second) continue;
      machine.notes.push_back("core " + std::to_string(core) + " is in several NUMA nodes");
      return;
    }
  }
}

}  // namespace

void complete_machine(Machine& machine) {
  machine.index_devices();
  name_switches(machine);
  for (Gpu& gpu : machine.gpus) {
    const PciDevice* const pci = device_of(machine, gpu);
    const GpuModel* const model = pci == nullptr || gpu.amd ? nullptr : find_gpu_model(pci->device);
    if (model != nullptr && gpu.name.empty()) gpu.name = model->name;
    if (model != nullptr && gpu.compute_capability == 0) {
      gpu.compute_capability = model->compute_capability;
    }
    const std::string unwell = health_degradation(gpu.health);
    if (!unwell.empty()) degrade(gpu, unwell);
    merge_links(machine, gpu);
    drop_impossible(machine, gpu);
  }
  match_ends(machine);
  for (const auto& [kind, alike] : siblings(machine)) {
    compare_links(machine, alike);
    compare_pci(machine, alike);
  }
  merge_nics(machine);
  machine.index_devices();
  compare_nics(machine);
  check_cores(machine);
}

}  // namespace trireme
