// SPDX-License-Identifier: Apache-2.0
#include "topology/machine.h"

#include <algorithm>
#include <array>
#include <map>

namespace trireme {
namespace {

// NVLinks: of the board; cards whose bridges are an option have them in the table too.
constexpr std::array kModels = {
    GpuModel{0x15f9, "Tesla P100-SXM2-16GB", 60, 4, true},
    GpuModel{0x15f8, "Tesla P100-PCIE-16GB", 60, 0, false},
    GpuModel{0x1db1, "Tesla V100-SXM2-16GB", 70, 6, true},
    GpuModel{0x1db4, "Tesla V100-PCIE-16GB", 70, 0, false},
    GpuModel{0x1db5, "Tesla V100-SXM2-32GB", 70, 6, true},
    GpuModel{0x1db6, "Tesla V100-PCIE-32GB", 70, 0, false},
    GpuModel{0x1db8, "Tesla V100-SXM3-32GB", 70, 6, true},
    GpuModel{0x1e30, "Quadro RTX 6000/8000", 75, 2, false},
    GpuModel{0x1eb8, "Tesla T4", 75, 0, false},
    GpuModel{0x20b0, "NVIDIA A100-SXM4-40GB", 80, 12, true},
    GpuModel{0x20b2, "NVIDIA A100-SXM4-80GB", 80, 12, true},
    GpuModel{0x20b5, "NVIDIA A100 80GB PCIe", 80, 12, false},
    GpuModel{0x20f1, "NVIDIA A100-PCIE-40GB", 80, 12, false},
    GpuModel{0x20b7, "NVIDIA A30", 80, 4, false},
    GpuModel{0x2204, "NVIDIA GeForce RTX 3090", 86, 4, false},
    GpuModel{0x2230, "NVIDIA RTX A6000", 86, 4, false},
    GpuModel{0x2235, "NVIDIA A40", 86, 4, false},
    GpuModel{0x2236, "NVIDIA A10", 86, 0, false},
    GpuModel{0x2237, "NVIDIA A10G", 86, 0, false},
    GpuModel{0x2684, "NVIDIA GeForce RTX 4090", 89, 0, false},
    GpuModel{0x26b1, "NVIDIA RTX 6000 Ada Generation", 89, 0, false},
    GpuModel{0x26b5, "NVIDIA L40", 89, 0, false},
    GpuModel{0x26b9, "NVIDIA L40S", 89, 0, false},
    GpuModel{0x27b8, "NVIDIA L4", 89, 0, false},
    GpuModel{0x2321, "NVIDIA H100 NVL", 90, 18, false},
    GpuModel{0x2330, "NVIDIA H100 80GB HBM3", 90, 18, true},
    GpuModel{0x2331, "NVIDIA H100 PCIe", 90, 18, false},
    GpuModel{0x2335, "NVIDIA H200", 90, 18, true},
    GpuModel{0x2342, "NVIDIA GH200 480GB", 90, 18, false},
    GpuModel{0x2901, "NVIDIA B200", 100, 18, true},
    GpuModel{0x2941, "NVIDIA GB200", 100, 18, true},
    GpuModel{0x3182, "NVIDIA B300", 103, 18, true},
};

struct Generation {
  int32_t compute_capability;
  int32_t nvlinks;     // of the largest board with this chip generation
  double bytes_per_s;  // payload of a link in one direction
};
constexpr std::array kGenerations = {
    Generation{60, 4, 20e9},   Generation{61, 0, 0},     Generation{70, 6, 25e9},
    Generation{75, 2, 25e9},   Generation{80, 12, 25e9}, Generation{86, 4, 14.0625e9},
    Generation{89, 0, 0},      Generation{90, 18, 25e9}, Generation{100, 18, 50e9},
    Generation{103, 18, 50e9}, Generation{120, 0, 0},    Generation{121, 0, 0},
};

const Generation* find_generation(const Gpu& gpu) {
  if (gpu.amd) return nullptr;
  for (const Generation& generation : kGenerations) {
    if (generation.compute_capability == gpu.compute_capability) return &generation;
  }
  return nullptr;
}

}  // namespace

int32_t Machine::find_pci(const std::string& id) const {
  const auto found =
      std::find_if(pci.begin(), pci.end(), [&](const auto& d) { return d.id == id; });
  return found == pci.end() ? -1 : static_cast<int32_t>(found - pci.begin());
}

void Machine::index_devices() {
  std::map<std::string, int32_t> places;
  for (const PciDevice& device : pci)
    places.emplace(device.id, static_cast<int32_t>(places.size()));
  const auto place = [&](const std::string& id) {
    const auto found = places.find(id);
    return found == places.end() ? -1 : found->second;
  };
  for (Gpu& gpu : gpus) gpu.pci = place(gpu.pci_id);
  for (Nic& nic : nics) nic.pci = place(nic.pci_id);
}

int32_t Machine::find_gpu(const std::string& id) const {
  const auto found =
      std::find_if(gpus.begin(), gpus.end(), [&](const auto& gpu) { return gpu.pci_id == id; });
  return found == gpus.end() ? -1 : static_cast<int32_t>(found - gpus.begin());
}

double pci_bytes_per_s(const PciLink& link) {
  if (link.bytes_per_s > 0) return link.bytes_per_s;
  // 8b/10b up to 5 GT/s, 128b/130b up to 32, from 64 on one bit a transfer with its overheads.
  const double coding = link.gigatransfers <= 5 ? 0.8 : 128.0 / 130;
  return link.gigatransfers * 1e9 / 8 * coding * link.width;
}

const GpuModel* find_gpu_model(int32_t pci_device) {
  const auto found = std::find_if(kModels.begin(), kModels.end(), [&](const GpuModel& model) {
    return model.device == pci_device;
  });
  return found == kModels.end() ? nullptr : &*found;
}

int32_t max_nvlinks(const Machine& machine, const Gpu& gpu) {
  const int32_t pci = machine.index_of(gpu);
  if (!gpu.amd && pci >= 0) {
    const GpuModel* const model = find_gpu_model(machine.pci[static_cast<size_t>(pci)].device);
    if (model != nullptr) return model->nvlinks;
  }
  const Generation* const generation = find_generation(gpu);
  return generation == nullptr ? -1 : generation->nvlinks;
}

void keep_switches(Machine& machine) {
  constexpr uint32_t kBridge = 0x0604, kOtherBridge = 0x0680;  // the latter: NVSwitches
  const size_t count = machine.pci.size();
  std::vector<int32_t> depth(count);
  std::vector<bool> kept(count, false);
  for (size_t i = 0; i < count; ++i) {
    const PciDevice& device = machine.pci[i];
    depth[i] = device.parent < 0 ? 1 : depth[static_cast<size_t>(device.parent)] + 1;
    const uint32_t kind = device.device_class >> 8, base = device.device_class >> 16;
    const bool shown = base == 0x02 || base == 0x03 || base == 0x12 || kind == kOtherBridge;
    if (!shown) continue;
    kept[i] = true;
    // The root port is the first level, so ports up are on the even ones.
    for (int32_t up = device.parent; up >= 0; up = machine.pci[static_cast<size_t>(up)].parent) {
      const auto index = static_cast<size_t>(up);
      if (machine.pci[index].device_class >> 8 == kBridge && depth[index] % 2 == 0)
        kept[index] = true;
    }
  }
  std::vector<PciDevice> devices;
  std::vector<int32_t> place(count, -1);  // of the nearest kept device, itself included
  for (size_t i = 0; i < count; ++i) {
    PciDevice& device = machine.pci[i];
    const int32_t above = device.parent < 0 ? -1 : place[static_cast<size_t>(device.parent)];
    place[i] = kept[i] ? static_cast<int32_t>(devices.size()) : above;
    if (!kept[i]) continue;
    device.parent = above;
    devices.push_back(std::move(device));
  }
  machine.pci = std::move(devices);
}

double nvlink_bytes_per_s(const Gpu& gpu) {
  const Generation* const generation = find_generation(gpu);
  return generation == nullptr ? 0 : generation->bytes_per_s;
}

}  // namespace trireme
