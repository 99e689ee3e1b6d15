// SPDX-License-Identifier: Apache-2.0
#include "topology/nvml_profile.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "topology/machine_text.h"

namespace trireme {
namespace {

class ProfileReader {
 public:
  ProfileReader(const YamlNode& root, const std::string& source) : root_(root), source_(source) {}

  Machine read(const std::string& name) {
    machine_.host = name;
    machine_.source = source_;
    const YamlNode* const defaults = root_.find("device_defaults");
    const YamlNode* const devices = root_.find("devices");
    if (defaults == nullptr || devices == nullptr || devices->items.empty()) {
      refuse(root_, "no device_defaults or no devices");
    }
    if (devices->items.size() > kMaxGpus) refuse(*devices, "more than 256 devices");
    read_numa();
    for (const YamlNode& device : devices->items) read_device(device, *defaults);
    read_ports();
    complete_machine(machine_);
    return std::move(machine_);
  }

 private:
  [[noreturn]] void refuse(const YamlNode& node, const std::string& what) const {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(node.line) + ": " + what);
  }

  // The device's own value, else the default's; nullptr: neither.
  static const YamlNode* value(const YamlNode& device, const YamlNode& defaults, const char* path) {
    const YamlNode* const own = device.at(path);
    return own != nullptr ? own : defaults.at(path);
  }

  double number(const YamlNode* node, const char* what, double least, double most,
                double absent) const {
    if (node == nullptr) return absent;
    const auto integer = read_integer(node->scalar);
    const auto found = integer ? static_cast<double>(*integer) : read_number(node->scalar);
    if (!found || *found < least || *found > most) {
      refuse(*node, std::string(what) + ": found \"" + node->scalar.substr(0, 40) +
                        "\", needed is " + std::to_string(least) + " to " + std::to_string(most));
    }
    return *found;
  }

  std::string text(const YamlNode* node) const {
    if (node == nullptr) return "";
    if (node->scalar.size() > 128) refuse(*node, "a text of more than 128 bytes");
    return node->scalar;
  }

  void read_numa() {
    const YamlNode* const roots = root_.at("pcie_topology.root_complexes");
    if (roots == nullptr) return;
    for (const YamlNode& complex : roots->items) {
      NumaNode node;
      node.id = static_cast<int32_t>(number(complex.find("numa_node"), "numa_node", -1, 1023, -1));
      const auto same = std::find_if(machine_.numa.begin(), machine_.numa.end(),
                                     [&](const NumaNode& other) { return other.id == node.id; });
      if (same == machine_.numa.end()) machine_.numa.push_back(node);
      const YamlNode* const devices = complex.find("devices");
      if (devices == nullptr) continue;
      for (const YamlNode& device : devices->items) {
        PciDevice pci;
        pci.id = read_pci_id(device.scalar);
        if (pci.id.empty()) refuse(device, "\"" + device.scalar.substr(0, 40) + "\" is no PCI id");
        if (machine_.find_pci(pci.id) >= 0) refuse(device, pci.id + " is there a second time");
        if (machine_.pci.size() >= kMaxPciDevices) refuse(device, "too many devices before it");
        pci.numa = node.id;
        pci.root = text(complex.find("id"));
        machine_.pci.push_back(pci);
      }
    }
  }

  void read_device(const YamlNode& device, const YamlNode& defaults) {
    Gpu gpu;
    const auto at = [&](const char* path) { return value(device, defaults, path); };
    gpu.index = static_cast<int32_t>(number(device.find("index"), "index", 0, 65535, -1));
    gpu.pci_id = read_pci_id(text(at("pci.bus_id")));
    if (gpu.pci_id.empty()) refuse(device, "a device without a PCI id at pci.bus_id");
    if (machine_.find_gpu(gpu.pci_id) >= 0) refuse(device, gpu.pci_id + " is there a second time");
    gpu.name = text(at("name"));
    gpu.uuid = text(at("uuid"));
    gpu.compute_capability =
        static_cast<int32_t>(10 * number(at("compute_capability.major"), "major", 0, 100, 0) +
                             number(at("compute_capability.minor"), "minor", 0, 9, 0));
    constexpr double kMostBytes = 1e15;
    gpu.memory_bytes = static_cast<uint64_t>(
        number(at("memory.total_bytes"), "memory.total_bytes", 0, kMostBytes, 0));
    gpu.free_bytes = static_cast<uint64_t>(
        number(at("memory.free_bytes"), "memory.free_bytes", 0, kMostBytes, 0));
    read_pci(device, defaults, gpu);
    read_links(gpu);
    machine_.gpus.push_back(gpu);
  }

  void read_pci(const YamlNode& device, const YamlNode& defaults, const Gpu& gpu) {
    int32_t index = machine_.find_pci(gpu.pci_id);
    if (index < 0) {
      index = static_cast<int32_t>(machine_.pci.size());
      machine_.pci.emplace_back().id = gpu.pci_id;
    }
    PciDevice& pci = machine_.pci[static_cast<size_t>(index)];
    const auto id = static_cast<int64_t>(
        number(value(device, defaults, "pci.device_id"), "pci.device_id", 0, 0xffffffff, 0));
    pci.device_class = 0x030200;
    if (id != 0) {
      pci.vendor = static_cast<int32_t>(id & 0xffff);
      pci.device = static_cast<int32_t>(id >> 16);
    }
    pci.link = read_link(device, defaults, "pcie.max_link_gen", "pcie.max_link_width");
    pci.now = read_link(device, defaults, "pcie.current_link_gen", "pcie.current_link_width");
  }

  PciLink read_link(const YamlNode& device, const YamlNode& defaults, const char* generation,
                    const char* width) const {
    constexpr double kSpeeds[] = {0, 2.5, 5, 8, 16, 32, 64, 128};
    PciLink link;
    const YamlNode* const lanes = value(device, defaults, width);
    link.gigatransfers = kSpeeds[static_cast<size_t>(
        number(value(device, defaults, generation), generation, 0, 7, 0))];
    link.width = static_cast<int32_t>(number(lanes, width, 0, 32, 0));
    if (!is_pci_width(link.width)) {
      refuse(*lanes, std::to_string(link.width) + " lanes, which no PCIe link has");
    }
    return link;
  }

  // Links go to the switches in turn; a profile without switches has none that lead anywhere.
  void read_links(Gpu& gpu) const {
    const YamlNode* const nvlink = root_.find("nvlink");
    gpu.links_known = true;
    if (nvlink == nullptr) return;
    const YamlNode* const count = nvlink->find("links_per_gpu");
    const auto links = static_cast<int32_t>(number(count, "links_per_gpu", 0, kMaxGpuNvLinks, 0));
    const YamlNode* const switches = nvlink->find("switches");
    if (switches == nullptr || switches->items.empty() || links == 0) return;
    const auto ends = static_cast<int32_t>(switches->items.size());
    if (ends > 64) refuse(*switches, "more than 64 switches");
    for (int32_t i = 0; i < ends; ++i) {
      const YamlNode& end = switches->items[static_cast<size_t>(i)];
      GpuLinks to{LinkKind::kNvLink, Remote::kSwitch, read_pci_id(text(end.find("bdf"))), 0, 0};
      if (to.target.empty()) refuse(end, "a switch without its PCI id at bdf");
      to.count = links / ends + (i < links % ends ? 1 : 0);
      if (to.count > 0) gpu.links.push_back(to);
    }
    const YamlNode* const c2c = nvlink->find("c2c_enabled");
    if (c2c != nullptr && c2c->scalar == "true") {
      gpu.links.push_back({LinkKind::kC2c, Remote::kCpu, "", 1, 450e9});
    }
  }

  // So many ports beside each GPU.
  void read_ports() {
    const YamlNode* const ports = root_.find("infiniband");
    if (ports == nullptr || text(ports->find("enabled")) != "true") return;
    const auto each =
        static_cast<size_t>(number(ports->find("hcas_per_gpu"), "hcas_per_gpu", 0, 16, 0));
    const double gigabits = number(ports->find("rate_gbps"), "rate_gbps", 0, 3200, 0);
    for (size_t i = 0; i < each * machine_.gpus.size() && i < kMaxNics; ++i) {
      const int32_t pci = machine_.find_pci(machine_.gpus[i / each].pci_id);
      Nic nic;
      nic.name = "mlx5_" + std::to_string(i);
      nic.numa = pci < 0 ? -1 : machine_.pci[static_cast<size_t>(pci)].numa;
      nic.port = 1;
      nic.bits_per_s = gigabits * 1e9;
      nic.state =
          text(ports->find("port_state")) == "ACTIVE" ? Nic::State::kActive : Nic::State::kDown;
      nic.phys_state = text(ports->find("phys_state"));
      nic.link_layer = text(ports->find("link_layer"));
      nic.guid = std::to_string(i);
      machine_.nics.push_back(nic);
    }
  }

  const YamlNode& root_;
  const std::string source_;
  Machine machine_;
};

}  // namespace

Machine read_nvml_profile(const YamlNode& root, const std::string& source,
                          const std::string& name) {
  return ProfileReader(root, source).read(name);
}

}  // namespace trireme
