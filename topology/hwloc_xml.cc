// SPDX-License-Identifier: Apache-2.0
#include "topology/hwloc_xml.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "kernels/base/error.h"
#include "topology/machine_text.h"

namespace trireme {
namespace {

constexpr size_t kMaxMatrix = 1024;  // rows and columns

class HwlocReader {
 public:
  HwlocReader(const std::string& source, const std::string& name) : source_(source) {
    machine_.host = name;
    machine_.source = source;
  }

  Machine read(const XmlElement& root) {
    const std::string version = text(root, "version");
    if (!version.starts_with("2.") && !version.starts_with("3.")) {
      refuse(root, "version=\"" + version +
                       "\", known are 2 and 3: export it again by `lstopo machine.xml` of hwloc 2");
    }
    for (const XmlElement& child : root.children) {
      if (child.name == "object") read_object(child, {});
    }
    for (const XmlElement& child : root.children) {
      if (child.name == "distances2hetero" && text(child, "name") == "NVLinkBandwidth") {
        read_nvlinks(child);
      }
      if (child.name == "info" && text(child, "name") == "HostName") {
        machine_.host = text(child, "value");
      }
    }
    keep_switches(machine_);
    complete_machine(machine_);
    return std::move(machine_);
  }

 private:
  struct Place {
    int32_t numa = -1;
    int32_t above = -1;  // the PCI device above
    std::string host_bridge;
  };

  [[noreturn]] void refuse(const XmlElement& element, const std::string& what) const {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(element.line) + ": <" + element.name +
                                            "> has " + what);
  }

  std::string text(const XmlElement& element, const char* name) const {
    constexpr size_t kMostBytes = 256;
    const std::string* const value = element.find(name);
    if (value == nullptr) return "";
    if (value->size() > kMostBytes) {
      refuse(element, "a " + std::string(name) + " of " + std::to_string(value->size()) +
                          " bytes, at most 256 are read");
    }
    return *value;
  }

  int64_t integer(const XmlElement& element, const char* name, int64_t least, int64_t most,
                  int64_t absent) const {
    const std::string value = text(element, name);
    if (value.empty()) return absent;
    const auto found = read_integer(value);
    if (!found || *found < least || *found > most) {
      refuse(element, std::string(name) + "=\"" + value + "\", needed is a whole number of " +
                          std::to_string(least) + " to " + std::to_string(most));
    }
    return *found;
  }

  void read_object(const XmlElement& object, Place place) {
    const std::string type = text(object, "type");
    if (type == "Machine" || type == "System") read_infos(object);
    // A NUMA node is a child of what it is the memory of, a sibling of what lies near to it.
    for (const XmlElement& child : object.children) {
      if (child.name == "object" && text(child, "type") == "NUMANode")
        place.numa = read_numa(child);
    }
    if (type == "Bridge" || type == "PCIDev") place.above = read_pci(object, place);
    if (type == "Bridge" && text(object, "bridge_type").starts_with("0-")) {
      place.host_bridge = "pci" + text(object, "bridge_pci");
      place.above = -1;
    }
    if (type == "OSDev") return read_os_device(object, place);
    for (const XmlElement& child : object.children) {
      if (child.name == "object" && text(child, "type") != "NUMANode") read_object(child, place);
    }
  }

  void read_infos(const XmlElement& object) {
    for (const XmlElement& child : object.children) {
      if (child.name == "info" && text(child, "name") == "HostName") {
        machine_.host = text(child, "value");
      }
    }
  }

  int32_t read_numa(const XmlElement& object) {
    NumaNode node;
    node.id = static_cast<int32_t>(integer(object, "os_index", 0, kMaxCores, -1));
    for (const NumaNode& other : machine_.numa) {
      if (other.id == node.id)
        refuse(object, "os_index " + std::to_string(node.id) + " a second time");
    }
    if (machine_.numa.size() >= kMaxNumaNodes) refuse(object, "too many NUMA nodes before it");
    node.memory_bytes =
        static_cast<uint64_t>(integer(object, "local_memory", 0, int64_t{1} << 50, 0));
    // A virtual machine of all cores says 0xf...f.
    const std::string* const mask = object.find("cpuset");
    if (mask != nullptr && mask->find("...") == mask->npos) {
      const auto cores = read_core_mask(*mask);
      if (!cores) refuse(object, "a cpuset that is no mask such as 0x0000000f");
      node.cores = *cores;
    }
    machine_.numa.push_back(node);
    return node.id;
  }

  // "0302 [10de:1db8] [10de:131d] a1 00"
  void read_pci_type(const XmlElement& object, PciDevice& device) const {
    const std::string type = text(object, "pci_type");
    const auto hexadecimal = [&](size_t begin) -> int64_t {
      if (type.size() < begin + 4) return -1;
      return read_integer("0x" + type.substr(begin, 4)).value_or(-1);
    };
    const int64_t kind = hexadecimal(0), vendor = hexadecimal(6), id = hexadecimal(11);
    if (type.size() < 16 || type[5] != '[' || kind < 0 || vendor < 0 || id < 0) {
      refuse(object, "pci_type=\"" + type + "\", needed is such as 0302 [10de:1db8]");
    }
    device.device_class = static_cast<uint32_t>(kind) << 8;
    device.vendor = static_cast<int32_t>(vendor);
    device.device = static_cast<int32_t>(id);
  }

  // The index of the new device; -1 for a host bridge, which is none.
  int32_t read_pci(const XmlElement& object, const Place& place) {
    const std::string bus = text(object, "pci_busid");
    if (bus.empty() && text(object, "type") == "Bridge") return -1;
    PciDevice device;
    device.id = read_pci_id(bus);
    if (device.id.empty())
      refuse(object, "pci_busid=\"" + bus + "\", needed is such as 0000:3b:00.0");
    if (machine_.find_pci(device.id) >= 0)
      refuse(object, "pci_busid " + device.id + " a second time");
    if (machine_.pci.size() >= kMaxPciDevices) refuse(object, "too many PCI devices before it");
    read_pci_type(object, device);
    const std::string speed = text(object, "pci_link_speed");
    constexpr double kMostGigabytes = 512;
    const auto gigabytes = speed.empty() ? 0.0 : read_number(speed);
    if (!gigabytes || *gigabytes < 0 || *gigabytes > kMostGigabytes) {
      refuse(object, "pci_link_speed=\"" + speed + "\", needed are GB/s of 0 to 512");
    }
    device.link.bytes_per_s = *gigabytes * 1e9;
    device.numa = place.numa;
    device.root = place.host_bridge;
    device.parent = place.above;
    machine_.pci.push_back(device);
    const auto index = static_cast<int32_t>(machine_.pci.size() - 1);
    note_id(object, "PCIDev", device.id);
    return index;
  }

  // Distances name objects by type and gp_index.
  void note_id(const XmlElement& object, const std::string& type, const std::string& pci) {
    const std::string key = type + ":" + text(object, "gp_index");
    if (!pci_of_.emplace(key, pci).second) {
      refuse(object, "gp_index " + text(object, "gp_index") + " a second time");
    }
  }

  void read_os_device(const XmlElement& object, const Place& place) {
    const std::string name = text(object, "name");
    const PciDevice* const pci =
        place.above < 0 ? nullptr : &machine_.pci[static_cast<size_t>(place.above)];
    std::map<std::string, std::string> infos;
    for (const XmlElement& child : object.children) {
      if (child.name == "info") infos[text(child, "name")] = text(child, "value");
    }
    if (pci != nullptr) note_id(object, "OSDev", pci->id);
    const bool is_gpu = name.starts_with("nvml") || name.starts_with("cuda") ||
                        name.starts_with("rsmi") || infos.count("GPUModel") > 0;
    if (is_gpu && pci != nullptr) return read_gpu(object, name, *pci, infos);
    const bool is_port = infos.count("NodeGUID") > 0 || infos.count("Port1State") > 0;
    const uint32_t kind = pci == nullptr ? 0 : pci->device_class >> 16;
    if (is_port || (kind == 0x02 && name.find("umad") == name.npos))
      read_nic(object, name, pci, infos);
  }

  void read_gpu(const XmlElement& object, const std::string& name, const PciDevice& pci,
                const std::map<std::string, std::string>& infos) {
    int32_t index = machine_.find_gpu(pci.id);
    if (index < 0) {
      if (machine_.gpus.size() >= kMaxGpus) refuse(object, "too many GPUs before it");
      index = static_cast<int32_t>(machine_.gpus.size());
      machine_.gpus.emplace_back().pci_id = pci.id;
    }
    Gpu& gpu = machine_.gpus[static_cast<size_t>(index)];
    gpu.amd = pci.vendor == 0x1002;
    const auto info = [&](const char* key) {
      const auto found = infos.find(key);
      return found == infos.end() ? std::string() : found->second;
    };
    if (!info("GPUModel").empty()) gpu.name = info("GPUModel");
    if (!info("NVIDIAUUID").empty()) gpu.uuid = info("NVIDIAUUID");
    const size_t digits = name.find_first_of("0123456789");
    if (name.starts_with("nvml") || (gpu.index < 0 && name.starts_with("cuda"))) {
      const auto number = read_integer(name.substr(std::min(digits, name.size())));
      if (number && *number >= 0 && *number < kMaxCores) gpu.index = static_cast<int32_t>(*number);
    }
    std::string memory = info("CUDAGlobalMemorySize");
    if (memory.ends_with("KiB")) memory.resize(memory.size() - 3);
    if (memory.empty()) return;
    const auto kibibytes = read_integer(memory);
    if (!kibibytes || *kibibytes < 0 || *kibibytes > int64_t{1} << 40) {
      refuse(object, "CUDAGlobalMemorySize " + memory + ", needed are KiB");
    }
    gpu.memory_bytes = static_cast<uint64_t>(*kibibytes) * 1024;
  }

  void read_nic(const XmlElement& object, const std::string& name, const PciDevice* pci,
                const std::map<std::string, std::string>& infos) {
    if (machine_.nics.size() >= kMaxNics) refuse(object, "too many NICs before it");
    Nic nic;
    nic.name = name;
    if (pci != nullptr) {
      nic.pci_id = pci->id;
      nic.numa = pci->numa;
    }
    const bool rdma = infos.count("NodeGUID") > 0;
    if (rdma) nic.guid = infos.at("NodeGUID");
    const auto state = infos.find("Port1State");
    if (state != infos.end()) {
      nic.state = state->second == "4" ? Nic::State::kActive : Nic::State::kDown;
    }
    nic.is_virtual = pci == nullptr && is_virtual_nic(name);
    machine_.nics.push_back(nic);
  }

  // Words of all children of one name, joined.
  static std::vector<std::string_view> words(const XmlElement& matrix, const char* name) {
    std::vector<std::string_view> all;
    for (const XmlElement& child : matrix.children) {
      if (child.name != name) continue;
      for (const std::string_view word : split_fields(trim(child.text), ' ')) {
        if (!trim(word).empty()) all.push_back(trim(word));
      }
    }
    return all;
  }

  void read_nvlinks(const XmlElement& matrix) {
    const auto size = static_cast<size_t>(integer(matrix, "nbobjs", 0, kMaxMatrix, 0));
    const auto names = words(matrix, "indexes");
    const auto values = words(matrix, "u64values");
    if (names.size() != size || values.size() != size * size) {
      refuse(matrix, std::to_string(names.size()) + " indexes and " +
                         std::to_string(values.size()) + " values, needed are nbobjs (" +
                         std::to_string(size) + ") and its square");
    }
    for (size_t row = 0; row < size; ++row) {
      const auto from = pci_of_.find(std::string(names[row]));
      const int32_t gpu = from == pci_of_.end() ? -1 : machine_.find_gpu(from->second);
      if (gpu < 0) continue;
      machine_.gpus[static_cast<size_t>(gpu)].links_known = true;
      for (size_t col = 0; col < size; ++col) {
        if (col == row) continue;
        add_links(matrix, static_cast<size_t>(gpu), std::string(names[col]),
                  values[row * size + col]);
      }
    }
  }

  // Megabytes per second of all links to one other end together.
  void add_links(const XmlElement& matrix, size_t index, const std::string& to,
                 std::string_view value) {
    constexpr int64_t kMostMegabytes = 4'000'000;
    const auto megabytes = read_integer(value);
    if (!megabytes || *megabytes < 0 || *megabytes > kMostMegabytes) {
      refuse(matrix, "the value " + std::string(value) + ", needed are MB/s of 0 to 4000000");
    }
    if (*megabytes == 0) return;
    Gpu& gpu = machine_.gpus[index];
    const int32_t pci = machine_.find_pci(gpu.pci_id);
    const GpuModel* const model = find_gpu_model(machine_.pci[static_cast<size_t>(pci)].device);
    if (gpu.compute_capability == 0 && model != nullptr) {
      gpu.compute_capability = model->compute_capability;
    }
    const double one = nvlink_bytes_per_s(gpu) > 0 ? nvlink_bytes_per_s(gpu) : 25e9;
    GpuLinks links;
    links.count = std::max(1, static_cast<int32_t>(std::lround(1e6 * double(*megabytes) / one)));
    links.bytes_per_s = 1e6 * static_cast<double>(*megabytes) / links.count;
    if (links.count > kMaxGpuNvLinks || gpu.links.size() >= kMaxLinkEntries) {
      refuse(matrix, "the value " + std::string(value) + ": no GPU has so many NVLinks");
    }
    const auto target = pci_of_.find(to);
    if (target != pci_of_.end()) links.target = target->second;
    const bool is_gpu = machine_.find_gpu(links.target) >= 0;
    links.remote = is_gpu                      ? Remote::kGpu
                   : to.starts_with("PCIDev:") ? Remote::kSwitch
                                               : Remote::kCpu;
    gpu.links.push_back(links);
  }

  const std::string source_;
  Machine machine_;
  std::map<std::string, std::string> pci_of_;  // "OSDev:802" -> PCI id
};

}  // namespace

Machine read_hwloc_xml(const XmlElement& root, const std::string& source, const std::string& name) {
  return HwlocReader(source, name).read(root);
}

}  // namespace trireme
