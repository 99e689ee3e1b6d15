// SPDX-License-Identifier: Apache-2.0
#include "topology/nccl_xml.h"

#include <map>
#include <set>

#include "kernels/base/error.h"
#include "topology/machine_extras.h"
#include "topology/machine_text.h"

namespace trireme {
namespace {

constexpr int64_t kGpuClass = 0x03, kNicClass = 0x02;  // the first of a class's three bytes
constexpr int64_t kNvidia = 0x10de, kAmd = 0x1002;

class NcclReader {
 public:
  NcclReader(const std::string& source, const std::string& name) : source_(source), name_(name) {}

  std::vector<Machine> read(const XmlElement& root) {
    const int64_t version = integer(root, "version", 1, 1'000'000, 1);
    if (version > 2) {
      refuse(root, "version " + std::to_string(version) + ", known are 1 (NCCL) and 2 (RCCL)");
    }
    Machine unknown;
    complete_ = integer(root, "complete", 0, 1, 0) != 0;
    for (const XmlElement& child : root.children) {
      if (child.name == "cpu") {
        read_cpu(child);
      } else if (!is_extra(child.name)) {
        leave_out(unknown, child);
      }
    }
    if (machines_.empty()) refuse(root, "no <cpu>: nothing is described");
    std::vector<std::string>& notes = machines_.front().notes;
    notes.insert(notes.begin(), unknown.notes.begin(), unknown.notes.end());
    for (size_t i = 0; i < machines_.size(); ++i) {
      Machine& machine = machines_[i];
      machine.host = machines_.size() == 1 ? name_ : name_ + "-" + std::to_string(i);
      machine.source = source_;
      // Of another rank, which has done it.
      if (complete_ && machines_.size() == 1) {
        extras(root, machine);
        machine.index_devices();
      } else {
        complete_machine(machine);
      }
    }
    return std::move(machines_);
  }

 private:
  // What lies around an element.
  struct Place {
    Machine* machine;
    int32_t numa;
    int32_t pci = -1;  // the device or switch above
  };

  [[noreturn]] void refuse(const XmlElement& element, const std::string& what) const {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(element.line) + ": <" + element.name +
                                            "> has " + what);
  }

  static void leave_out(Machine& machine, const XmlElement& element) {
    if (machine.notes.size() >= 64) return;
    machine.notes.push_back("line " + std::to_string(element.line) + ": <" + element.name +
                            "> is not known: left out");
  }

  int64_t integer(const XmlElement& element, const char* name, int64_t least, int64_t most,
                  int64_t absent) const {
    const std::string* const text = element.find(name);
    if (text == nullptr || text->empty()) return absent;
    const auto value = read_integer(*text);
    if (!value || *value < least || *value > most) {
      refuse(element, std::string(name) + "=\"" + *text + "\", needed is a whole number of " +
                          std::to_string(least) + " to " + std::to_string(most));
    }
    return *value;
  }

  template <class Item>
  void extras(const XmlElement& element, Item& item) const {
    std::string objection;
    if (!read_extras(element, item, objection)) refuse(element, objection);
  }

  std::string text(const XmlElement& element, const char* name) const {
    constexpr size_t kMostBytes = 128;
    const std::string* const value = element.find(name);
    if (value == nullptr) return "";
    if (value->size() > kMostBytes) {
      refuse(element, "a " + std::string(name) + " of " + std::to_string(value->size()) +
                          " bytes, at most 128 are read");
    }
    return *value;
  }

  std::string bus_id(const XmlElement& element, const char* name) const {
    const std::string* const text = element.find(name);
    const std::string id = text == nullptr ? "" : read_pci_id(*text);
    if (id.empty()) {
      refuse(element, std::string(name) + "=\"" + (text == nullptr ? "" : *text) +
                          "\", needed is a PCI id such as 0000:3b:00.0");
    }
    return id;
  }

  void limit(const XmlElement& element, size_t count, size_t most, const char* what) const {
    if (count < most) return;
    refuse(element,
           "too many before it: a machine has at most " + std::to_string(most) + " " + what);
  }

  Machine& machine_of(const std::string& host_hash) {
    const auto [at, added] = index_of_.emplace(host_hash, machines_.size());
    if (added) {
      machines_.emplace_back();
      ids_.emplace_back();
    }
    return machines_[at->second];
  }

  void read_cpu(const XmlElement& cpu) {
    if (machines_.size() >= kMaxHostsWithGpus) refuse(cpu, "too many hosts before it");
    Machine& machine = machine_of(text(cpu, "host_hash"));
    limit(cpu, machine.numa.size(), kMaxNumaNodes, "CPUs");
    NumaNode node;
    node.id = static_cast<int32_t>(integer(cpu, "numaid", -1, kMaxNumaNodes, -1));
    for (const NumaNode& other : machine.numa) {
      if (other.id == node.id) refuse(cpu, "numaid " + std::to_string(node.id) + " a second time");
    }
    if (const std::string* const mask = cpu.find("affinity")) {
      const auto cores = read_core_mask(*mask);
      if (!cores)
        refuse(cpu, "affinity=\"" + *mask + "\", needed is a mask such as 0000ffff,0000ffff");
      node.cores = *cores;
    }
    node.cpu_vendor = text(cpu, "vendor");
    node.architecture = text(cpu, "arch");
    node.cpu_family = static_cast<int32_t>(integer(cpu, "familyid", -1, 1 << 20, 0));
    node.cpu_model = static_cast<int32_t>(integer(cpu, "modelid", -1, 1 << 20, 0));
    extras(cpu, node);
    const bool stands_for_none = complete_ && node.id < 0 && node.cores.empty();
    if (!stands_for_none) machine.numa.push_back(node);
    read_children(cpu, {&machine, node.id});
  }

  void read_children(const XmlElement& element, const Place& place) {
    for (const XmlElement& child : element.children) {
      if (child.name == "pci") {
        read_pci(child, place);
      } else if (child.name == "nic") {
        read_nic(child, place);
      } else if (child.name == "gpu" && place.pci >= 0) {
        read_gpu(child, place);
      } else {
        leave_out(*place.machine, child);
      }
    }
  }

  PciLink read_link(const XmlElement& pci) const {
    PciLink link;
    if (const std::string* const text = pci.find("link_speed")) {
      const auto speed = read_pci_speed(*text);
      if (!speed) {
        refuse(pci, "link_speed=\"" + *text + "\", which no PCIe link has (2.5 to 128 GT/s)");
      }
      link.gigatransfers = *speed;
    }
    const int64_t width = integer(pci, "link_width", -1, 255, 0);
    link.width = width == -1 || width == 255 ? 0 : static_cast<int32_t>(width);  // Linux: unknown
    if (!is_pci_width(link.width)) {
      refuse(pci, "link_width=\"" + std::to_string(width) + "\", which no PCIe link has (1 to 32)");
    }
    return link;
  }

  void read_pci(const XmlElement& element, const Place& place) {
    Machine& machine = *place.machine;
    limit(element, machine.pci.size(), kMaxPciDevices, "PCI devices");
    PciDevice device;
    device.id = bus_id(element, "busid");
    if (!ids_[static_cast<size_t>(&machine - machines_.data())].insert(device.id).second) {
      refuse(element, "busid " + device.id + " a second time in one machine");
    }
    device.device_class = static_cast<uint32_t>(integer(element, "class", 0, 0xffffff, 0));
    device.vendor = static_cast<int32_t>(integer(element, "vendor", 0, 0xffff, -1));
    device.device = static_cast<int32_t>(integer(element, "device", 0, 0xffff, -1));
    device.link = read_link(element);
    device.parent = place.pci;
    device.numa = place.numa;
    extras(element, device);
    machine.pci.push_back(device);
    const auto index = static_cast<int32_t>(machine.pci.size() - 1);
    const size_t gpus = machine.gpus.size(), nics = machine.nics.size();
    read_children(element, {&machine, place.numa, index});
    if (!element.children.empty()) {
      if (device.device_class == 0 && machine.gpus.size() > gpus) {
        machine.pci[static_cast<size_t>(index)].device_class = 0x030200;
      } else if (device.device_class == 0 && machine.nics.size() > nics) {
        machine.pci[static_cast<size_t>(index)].device_class = 0x020000;
      }
      return;
    }
    if (complete_) return;
    // Operators' files list devices by their class alone.
    const int64_t kind = device.device_class >> 16;
    const bool compute = kind == kGpuClass && (device.device_class != 0x030000 ||
                                               device.vendor == kNvidia || device.vendor == kAmd);
    if (compute) add_gpu(element, place, device).amd = device.vendor == kAmd;
    if (kind == kNicClass) {
      limit(element, machine.nics.size(), kMaxNics, "NICs");
      Nic nic;
      nic.name = nic.pci_id = device.id;
      nic.numa = place.numa;
      machine.nics.push_back(nic);
    }
  }

  Gpu& add_gpu(const XmlElement& element, const Place& place, const PciDevice& device) {
    limit(element, place.machine->gpus.size(), kMaxGpus, "GPUs");
    Gpu& gpu = place.machine->gpus.emplace_back();
    gpu.pci_id = device.id;
    return gpu;
  }

  void read_gpu(const XmlElement& element, const Place& place) {
    Machine& machine = *place.machine;
    const PciDevice device = machine.pci[static_cast<size_t>(place.pci)];
    if (machine.find_gpu(device.id) >= 0) refuse(element, "a sibling on the same PCI device");
    Gpu& gpu = add_gpu(element, place, device);
    gpu.index = static_cast<int32_t>(integer(element, "dev", -1, 65535, -1));
    gpu.amd = element.find("gcn") != nullptr || device.vendor == kAmd;
    const auto sm = static_cast<int32_t>(integer(element, "sm", 0, 2000, 0));
    if (gpu.amd) {
      const std::string gcn = text(element, "gcn");
      gpu.name = gcn.empty() ? "AMD GPU" : "AMD gfx" + gcn;
    } else {
      gpu.compute_capability = sm;
    }
    if (element.find("gdr") != nullptr) gpu.gdr = integer(element, "gdr", 0, 1, 0) != 0;
    gpu.links_known = true;
    if (complete_) gpu.links_known = element.find("links_known") != nullptr;
    extras(element, gpu);
    int64_t total = 0;
    for (const XmlElement& child : element.children) {
      limit(child, gpu.links.size(), kMaxLinkEntries, "links of one GPU");
      if (child.name == "nvlink" || child.name == "xgmi") {
        gpu.links.push_back(read_links(child));
        total += gpu.links.back().count;
      } else if (child.name == "c2c") {
        GpuLinks links{LinkKind::kC2c, Remote::kCpu, "", 1, 0};
        links.count = static_cast<int32_t>(integer(child, "count", 0, 64, 1));
        links.bytes_per_s = 1e6 * static_cast<double>(integer(child, "bw", 0, 4'000'000, 0));
        gpu.links.push_back(links);
      } else if (!is_extra(child.name)) {
        leave_out(machine, child);
      }
    }
    if (total > kMaxGpuNvLinks) {
      refuse(element, std::to_string(total) + " NVLinks in all, no GPU has more than " +
                          std::to_string(kMaxGpuNvLinks));
    }
  }

  GpuLinks read_links(const XmlElement& element) const {
    GpuLinks links;
    links.kind = element.name == "xgmi" ? LinkKind::kXgmi : LinkKind::kNvLink;
    links.target = bus_id(element, "target");
    links.count = static_cast<int32_t>(integer(element, "count", 0, kMaxGpuNvLinks, 1));
    if (const std::string* const speed = element.find("bytes_per_s")) {
      const auto bytes = read_number(*speed);
      if (!bytes || *bytes < 0 || *bytes > 1e12) refuse(element, "bytes_per_s=\"" + *speed + "\"");
      links.bytes_per_s = *bytes;
    }
    const int64_t remote = integer(element, "tclass", 0, 0xffffff, 0);
    if (remote == 0x068001)
      links.remote = Remote::kCpu;  // an IBM processor
    else if (remote >> 8 == 0x0680)
      links.remote = Remote::kSwitch;
    else if (remote >> 16 == kGpuClass)
      links.remote = Remote::kGpu;
    // The switch of a virtual machine, which cannot see it.
    if (remote == 0 && links.target == "fffffff:ff:ff.0") links.remote = Remote::kSwitch;
    return links;
  }

  void read_nic(const XmlElement& element, const Place& place) {
    Machine& machine = *place.machine;
    for (const XmlElement& net : element.children) {
      if (net.name != "net") {
        leave_out(machine, net);
        continue;
      }
      limit(net, machine.nics.size(), kMaxNics, "NICs");
      Nic nic;
      nic.name = text(net, "name");
      if (place.pci >= 0) nic.pci_id = machine.pci[static_cast<size_t>(place.pci)].id;
      nic.numa = place.numa;
      nic.port = static_cast<int32_t>(integer(net, "port", 0, 65535, 0));
      nic.bits_per_s = read_rate(net, nic);
      nic.guid = text(net, "guid");
      if (net.find("gdr") != nullptr) nic.gdr = integer(net, "gdr", 0, 1, 0) != 0;
      nic.is_virtual = nic.pci_id.empty() && is_virtual_nic(nic.name);
      extras(net, nic);
      if (nic.is_virtual && nic.notes.empty())
        nic.notes.push_back("a virtual device: its speed says nothing");
      machine.nics.push_back(nic);
    }
  }

  double read_rate(const XmlElement& net, Nic& nic) const {
    const std::string* const text = net.find("speed");
    if (text == nullptr || text->empty() || *text == "-1") return 0;
    constexpr double kMostMegabits = 3.2e6;
    const auto megabits = read_number(*text);
    if (!megabits || *megabits < 0 || *megabits > kMostMegabits) {
      refuse(net, "speed=\"" + *text + "\", needed are Mbit/s of 0 to 3200000");
    }
    if (*megabits > 0 && !is_port_speed(*megabits * 1e6)) {
      nic.notes.push_back(*text + " Mbit/s is no port's speed: set by hand, and taken as it is");
    }
    return *megabits * 1e6;
  }

  const std::string source_, name_;
  bool complete_ = false;  // the whole of a machine, by write_nccl_xml(machine, true)
  std::vector<Machine> machines_;
  std::vector<std::set<std::string>> ids_;  // of each machine's PCI devices
  std::map<std::string, size_t> index_of_;
};

}  // namespace

std::vector<Machine> read_nccl_xml(const XmlElement& root, const std::string& source,
                                   const std::string& name) {
  return NcclReader(source, name).read(root);
}

}  // namespace trireme
