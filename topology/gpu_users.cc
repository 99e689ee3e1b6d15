// SPDX-License-Identifier: Apache-2.0
#include "topology/gpu_users.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "topology/machine_text.h"
#include "topology/nvml_library.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr size_t kMostAsked = 256;
constexpr size_t kMostShown = 4;

// Null: it has no such GPU.
nvml::Device find_device(const nvml::Api& api, const std::string& pci_id) {
  unsigned count = 0;
  if (api.count(&count) != nvml::kSuccess) return nullptr;
  for (unsigned i = 0; i < std::min<unsigned>(count, kMaxGpus); ++i) {
    nvml::Device device = nullptr;
    nvml::PciInfo pci = {};
    if (api.handle(i, &device) != nvml::kSuccess || api.pci(device, &pci) != nvml::kSuccess) {
      continue;
    }
    if (read_pci_id(std::string(pci.id, strnlen(pci.id, sizeof pci.id))) == pci_id) return device;
  }
  return nullptr;
}

}  // namespace

std::string describe_gpu_users(const std::string& pci_id, int64_t own_pid,
                               const std::string& nvml_library) {
  const nvml::Library library(nvml_library);
  if (!library.missing().empty() || library.api().processes == nullptr) return "";
  const nvml::Device device = find_device(library.api(), read_pci_id(pci_id));
  if (device == nullptr) return "";
  std::vector<nvml::ProcessInfo> processes(kMostAsked);
  unsigned count = kMostAsked;
  const nvml::Result result = library.api().processes(device, &count, processes.data());
  if (result != nvml::kSuccess) return "";
  processes.resize(std::min<size_t>(count, kMostAsked));
  std::erase_if(processes, [&](const nvml::ProcessInfo& one) { return one.pid == own_pid; });
  constexpr auto kNotKnown = ~0ULL;
  const auto known = [](const nvml::ProcessInfo& one) {
    return one.used_bytes == kNotKnown ? 0 : one.used_bytes;
  };
  std::sort(processes.begin(), processes.end(),
            [&](const auto& a, const auto& b) { return known(a) > known(b); });
  std::string text;
  for (size_t i = 0; i < std::min(processes.size(), kMostShown); ++i) {
    text += (i == 0 ? "process " : ", process ") + std::to_string(processes[i].pid);
    if (known(processes[i]) > 0) text += " (" + format_bytes(known(processes[i])) + ")";
  }
  if (processes.size() > kMostShown) {
    text += " and " + std::to_string(processes.size() - kMostShown) + " more";
  }
  return text;
}

}  // namespace trireme
