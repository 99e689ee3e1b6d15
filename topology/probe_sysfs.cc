// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "topology/machine_text.h"
#include "topology/probe_machine.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr int32_t kNvidia = 0x10de, kAmd = 0x1002;

// The text of a small file, without its end of line; empty: it is absent or cannot be read, as
// `speed` of a NIC that is down cannot.
std::string read_small(const fs::path& path) {
  constexpr size_t kMostBytes = 4096;
  std::ifstream file(path, std::ios::binary);
  std::string text(kMostBytes, '\0');
  file.read(text.data(), kMostBytes);
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= 0x80 || c == '\0') c = '?';
  }
  return std::string(trim(text));
}

int64_t read_number_file(const fs::path& path, int64_t absent) {
  return read_integer(read_small(path)).value_or(absent);
}

// Whether something there can be looked at: never an error.
bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// Entries in a fixed order; none where the folder is absent.
std::vector<fs::path> entries(const fs::path& folder) {
  constexpr size_t kMost = 16384;  // virtual functions come in hundreds a card
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (paths.size() >= kMost) break;
    paths.push_back(it->path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// The PCI ids in the real path of a device, from the CPU outwards.
std::vector<std::string> pci_chain(const fs::path& device, std::string& root) {
  std::error_code error;
  const fs::path real = fs::canonical(device, error);
  std::vector<std::string> chain;
  if (error) return chain;
  for (const fs::path& part : real) {
    const std::string name = part.string();
    const std::string id = read_pci_id(name);
    if (!id.empty()) {
      chain.push_back(id);
    } else if (name.starts_with("pci") && chain.empty()) {
      root = name;
    }
  }
  return chain;
}

PciLink read_link(const fs::path& device, const char* speed, const char* width) {
  PciLink link;
  link.gigatransfers = read_pci_speed(read_small(device / speed)).value_or(0);
  const int64_t lanes = read_number_file(device / width, 0);
  link.width = is_pci_width(lanes) ? static_cast<int32_t>(lanes) : 0;  // 255: not known
  return link;
}

// What both can do; where one says nothing, the other's word.
PciLink slower(const PciLink& a, const PciLink& b) {
  PciLink link = a;
  if (b.gigatransfers > 0 && (link.gigatransfers == 0 || b.gigatransfers < link.gigatransfers)) {
    link.gigatransfers = b.gigatransfers;
  }
  if (b.width > 0 && (link.width == 0 || b.width < link.width)) link.width = b.width;
  return link;
}

class SysfsProbe {
 public:
  SysfsProbe(const fs::path& root, Machine& machine) : root_(root), machine_(machine) {}

  void run() {
    read_numa();
    read_pci();
    add_gpus();
    read_infiniband();
    read_net();
    read_gdr();
  }

 private:
  void read_numa() {
    std::string vendor;
    int32_t family = 0, model = 0;
    read_cpuinfo(vendor, family, model);
    for (const fs::path& path : entries(root_ / "sys/devices/system/node")) {
      const std::string name = path.filename();
      if (!name.starts_with("node") || machine_.numa.size() >= kMaxNumaNodes) continue;
      const auto id = read_integer(name.substr(4));
      const auto cores = read_core_list(read_small(path / "cpulist"));
      if (!id || *id < 0 || *id > kMaxCores || !cores) continue;
      NumaNode node;
      node.id = static_cast<int32_t>(*id);
      node.cores = *cores;
      node.memory_bytes = node_memory(path / "meminfo");
      node.cpu_vendor = vendor;
      node.cpu_family = family;
      node.cpu_model = model;
      machine_.numa.push_back(node);
    }
    std::sort(machine_.numa.begin(), machine_.numa.end(),
              [](const NumaNode& a, const NumaNode& b) { return a.id < b.id; });
    if (machine_.numa.empty()) {
      machine_.missing.push_back("NUMA nodes: no node in " +
                                 (root_ / "sys/devices/system/node").string());
    }
  }

  void read_cpuinfo(std::string& vendor, int32_t& family, int32_t& model) const {
    std::ifstream file(root_ / "proc/cpuinfo");
    int lines = 0;
    for (std::string line; std::getline(file, line) && !trim(line).empty() && lines < 100;
         ++lines) {
      const size_t colon = line.find(':');
      if (colon == line.npos) continue;
      const std::string_view key = trim(std::string_view(line).substr(0, colon));
      const std::string_view value = trim(std::string_view(line).substr(colon + 1));
      const auto number = static_cast<int32_t>(read_integer(value).value_or(0));
      if (key == "vendor_id") vendor = value.substr(0, 64);
      if (key == "cpu family") family = number;
      if (key == "model") model = number;
    }
  }

  // "Node 0 MemTotal:  8388608 kB"
  static uint64_t node_memory(const fs::path& path) {
    const std::string text = read_small(path);
    const size_t at = text.find("MemTotal:");
    if (at == text.npos) return 0;
    const std::string_view rest = trim(std::string_view(text).substr(at + 9));
    const auto kibibytes = read_integer(rest.substr(0, rest.find(' ')));
    return kibibytes && *kibibytes > 0 && *kibibytes < int64_t{1} << 42
               ? static_cast<uint64_t>(*kibibytes) * 1024
               : 0;
  }

  void read_pci() {
    struct Found {
      std::vector<std::string> chain;
      std::string root;
      fs::path path;
    };
    std::vector<Found> found;
    for (const fs::path& path : entries(root_ / "sys/bus/pci/devices")) {
      Found device{{}, "", path};
      device.chain = pci_chain(path, device.root);
      if (!device.chain.empty()) found.push_back(std::move(device));
    }
    if (found.empty()) {
      machine_.missing.push_back("PCI devices: none in " +
                                 (root_ / "sys/bus/pci/devices").string());
    }
    std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
      return a.chain.size() < b.chain.size();
    });
    for (const Found& one : found) {
      if (machine_.find_pci(one.chain.back()) >= 0) continue;
      PciDevice device;
      device.id = one.chain.back();
      device.root = one.root;
      device.device_class =
          static_cast<uint32_t>(read_number_file(one.path / "class", 0) & 0xffffff);
      device.vendor = static_cast<int32_t>(read_number_file(one.path / "vendor", -1));
      device.device = static_cast<int32_t>(read_number_file(one.path / "device", -1));
      const int64_t numa = read_number_file(one.path / "numa_node", -1);
      device.numa = numa >= 0 && numa <= kMaxCores ? static_cast<int32_t>(numa) : -1;
      device.now = read_link(one.path, "current_link_speed", "current_link_width");
      device.link = read_link(one.path, "max_link_speed", "max_link_width");
      if (one.chain.size() > 1) device.parent = machine_.find_pci(one.chain[one.chain.size() - 2]);
      const fs::path port =
          one.path.parent_path() / (one.chain.size() > 1 ? one.chain[one.chain.size() - 2] : "");
      if (device.parent >= 0) {
        device.link = slower(device.link, read_link(port, "max_link_speed", "max_link_width"));
      }
      machine_.pci.push_back(device);
    }
    // One node and no word of it: it is that one.
    if (machine_.numa.size() != 1) return;
    for (PciDevice& device : machine_.pci) {
      if (device.numa < 0) device.numa = machine_.numa[0].id;
    }
  }

  // In the order of their PCI ids, which is the driver's too unless told otherwise.
  void add_gpus() {
    for (const PciDevice& device : machine_.pci) {
      const uint32_t base = device.device_class >> 16;
      const bool accelerator = base == 0x03 || base == 0x12;
      if (!accelerator || (device.vendor != kNvidia && device.vendor != kAmd)) continue;
      if (machine_.gpus.size() >= kMaxGpus) break;
      Gpu& gpu = machine_.gpus.emplace_back();
      gpu.pci_id = device.id;
      gpu.amd = device.vendor == kAmd;
    }
    std::sort(machine_.gpus.begin(), machine_.gpus.end(),
              [](const Gpu& a, const Gpu& b) { return a.pci_id < b.pci_id; });
    for (size_t i = 0; i < machine_.gpus.size(); ++i) {
      machine_.gpus[i].index = static_cast<int32_t>(i);
    }
  }

  void set_place(const fs::path& device, Nic& nic) const {
    std::string root;
    const auto chain = pci_chain(device, root);
    if (chain.empty()) return;
    nic.pci_id = chain.back();
    const int32_t pci = machine_.find_pci(nic.pci_id);
    if (pci >= 0) nic.numa = machine_.pci[static_cast<size_t>(pci)].numa;
    if (is_there(device / "physfn")) nic.notes.emplace_back("a virtual function of a card");
  }

  void read_infiniband() {
    const fs::path folder = root_ / "sys/class/infiniband";
    const auto devices = entries(folder);
    if (devices.empty()) machine_.missing.push_back("InfiniBand: no device in " + folder.string());
    for (const fs::path& device : devices) {
      for (const fs::path& port : entries(device / "ports")) {
        if (machine_.nics.size() >= kMaxNics) return;
        machine_.nics.push_back(read_port(device, port));
      }
    }
  }

  Nic read_port(const fs::path& device, const fs::path& port) const {
    Nic nic;
    nic.name = device.filename();
    nic.port = static_cast<int32_t>(
        std::clamp<int64_t>(read_integer(port.filename().string()).value_or(0), 0, 255));
    set_place(device / "device", nic);
    nic.guid = read_small(device / "node_guid");
    // "400 Gb/sec (4X NDR)", "4: ACTIVE", "5: LinkUp"
    const std::string rate = read_small(port / "rate");
    const auto gigabits = read_number(std::string_view(rate).substr(0, rate.find(' ')));
    if (gigabits && *gigabits > 0 && *gigabits <= 3200) nic.bits_per_s = 1e9 * *gigabits;
    const std::string state = read_small(port / "state");
    if (!state.empty()) {
      nic.state = state.starts_with("4") ? Nic::State::kActive : Nic::State::kDown;
    }
    const std::string phys_state = read_small(port / "phys_state");
    nic.phys_state = phys_state.substr(std::min(phys_state.size(), phys_state.find(' ') + 1));
    nic.link_layer = read_small(port / "link_layer");
    if (nic.state == Nic::State::kDown) {
      nic.notes.push_back("down: state " + state + ", phys_state " + phys_state);
    }
    if (rate.find("(1X") != rate.npos || rate.find("(2X") != rate.npos) {
      nic.notes.push_back("runs with fewer lanes than four: " + rate);
    }
    for (const char* counter : {"link_downed", "symbol_error"}) {
      const int64_t count = read_number_file(port / "counters" / counter, 0);
      if (count > 0) nic.notes.push_back(std::to_string(count) + " " + counter);
    }
    return nic;
  }

  void read_net() {
    constexpr int64_t kEthernet = 1;
    for (const fs::path& path : entries(root_ / "sys/class/net")) {
      if (machine_.nics.size() >= kMaxNics) return;
      if (read_number_file(path / "type", 0) != kEthernet)
        continue;  // loopback, IP over InfiniBand
      Nic nic;
      nic.name = path.filename();
      nic.link_layer = "Ethernet";
      nic.is_virtual = !is_there(path / "device");
      if (!nic.is_virtual) set_place(path / "device", nic);
      // An RDMA card shows its port as both; a bond speaks for its members.
      const bool known = std::any_of(
          machine_.nics.begin(), machine_.nics.end(),
          [&](const Nic& other) { return !nic.pci_id.empty() && other.pci_id == nic.pci_id; });
      if (known) continue;
      const int64_t megabits = read_number_file(path / "speed", -1);
      if (megabits > 0 && megabits <= 3'200'000)
        nic.bits_per_s = 1e6 * static_cast<double>(megabits);
      const std::string state = read_small(path / "operstate");
      if (state == "up") nic.state = Nic::State::kActive;
      if (state == "down" || state == "lowerlayerdown") nic.state = Nic::State::kDown;
      if (is_there(path / "bonding")) {
        nic.notes.push_back("a bond of " + read_small(path / "bonding/slaves"));
      }
      machine_.nics.push_back(nic);
    }
  }

  // A NIC reads a GPU's memory by a module of its own, or by dma-buf of the open driver.
  void read_gdr() {
    if (machine_.gpus.empty()) return;
    bool usable =
        is_there(root_ / "sys/module/nvidia_peermem") || is_there(root_ / "sys/module/nv_peer_mem");
    const std::string driver = read_small(root_ / "proc/driver/nvidia/version");
    if (!usable && driver.find("Open Kernel Module") != driver.npos) usable = has_dma_buf();
    for (Gpu& gpu : machine_.gpus) {
      if (!gpu.amd) gpu.gdr = usable;
    }
    for (Nic& nic : machine_.nics) {
      if (!nic.guid.empty()) nic.gdr = usable;
    }
    if (usable) return;
    machine_.missing.emplace_back(
        "GPUDirect RDMA: neither the module nvidia_peermem nor the open driver with dma-buf: the "
        "network goes through the host's memory; try modprobe nvidia_peermem");
  }

  // Linux 5.12 or newer.
  bool has_dma_buf() const {
    const std::string release = read_small(root_ / "proc/sys/kernel/osrelease");
    const auto parts = split_fields(release, '.');
    if (parts.size() < 2) return false;
    const auto major = read_integer(parts[0]), minor = read_integer(parts[1]);
    return major && minor && (*major > 5 || (*major == 5 && *minor >= 12));
  }

  const fs::path root_;
  Machine& machine_;
};

}  // namespace

void probe_sysfs(const std::string& root, Machine& machine) { SysfsProbe(root, machine).run(); }

}  // namespace trireme
