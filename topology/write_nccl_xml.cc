// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>

#include "topology/machine_extras.h"
#include "topology/machine_text.h"
#include "topology/nccl_xml.h"

namespace trireme {
namespace {

class NcclWriter {
 public:
  NcclWriter(const Machine& machine, bool extras) : machine_(machine), extras_(extras) {}

  std::string write() {
    line(0, "<system" + attribute("version", has_xgmi() ? "2" : "1") +
                (extras_ ? attribute("complete", "1") : "") + extra(machine_) + ">");
    if (extras_) line(1, extra_children(machine_));
    for (const NumaNode& node : machine_.numa) write_cpu(node, node.id);
    // What no NUMA node claims still has to be somewhere.
    if (needs_unknown_cpu()) write_cpu({}, -1);
    line(0, "</system>");
    return text_;
  }

 private:
  bool has_xgmi() const {
    for (const Gpu& gpu : machine_.gpus) {
      for (const GpuLinks& links : gpu.links) {
        if (links.kind == LinkKind::kXgmi) return true;
      }
    }
    return false;
  }

  bool has_node(int32_t id) const {
    for (const NumaNode& node : machine_.numa) {
      if (node.id == id) return true;
    }
    return false;
  }

  bool needs_unknown_cpu() const {
    if (has_node(-1)) return false;
    if (machine_.numa.empty()) return true;
    for (const PciDevice& device : machine_.pci) {
      if (device.parent < 0 && !has_node(device.numa)) return true;
    }
    for (const Nic& nic : machine_.nics) {
      if (is_loose(nic) && !has_node(nic.numa)) return true;
    }
    return std::any_of(machine_.gpus.begin(), machine_.gpus.end(),
                       [&](const Gpu& gpu) { return is_loose(gpu); });
  }

  // Not in the PCI tree. NCCL has no place for such a GPU.
  bool is_loose(const Nic& nic) const {
    return nic.pci_id.empty() || (extras_ && machine_.index_of(nic) < 0);
  }
  bool is_loose(const Gpu& gpu) const { return extras_ && machine_.index_of(gpu) < 0; }

  void line(int depth, const std::string& text) {
    text_ += std::string(static_cast<size_t>(depth) * 2, ' ') + text + "\n";
  }

  static std::string attribute(const char* name, const std::string& value) {
    return " " + std::string(name) + "=\"" + xml_escape(value) + "\"";
  }

  static std::string hexadecimal(const char* name, int64_t value, int digits) {
    if (value < 0) return "";
    char text[24];
    std::snprintf(text, sizeof text, "0x%0*llx", digits, static_cast<unsigned long long>(value));
    return attribute(name, text);
  }

  void write_cpu(const NumaNode& node, int32_t id) {
    std::string open = "<cpu" + attribute("numaid", std::to_string(id)) +
                       attribute("affinity", write_core_mask(node.cores));
    if (!node.architecture.empty()) open += attribute("arch", node.architecture);
    if (!node.cpu_vendor.empty()) {
      open += attribute("vendor", node.cpu_vendor) +
              attribute("familyid", std::to_string(node.cpu_family)) +
              attribute("modelid", std::to_string(node.cpu_model));
    }
    line(1, open + extra(node) + ">");
    const auto is_here = [&](int32_t numa) { return numa == id || (id == -1 && !has_node(numa)); };
    for (size_t i = 0; i < machine_.pci.size(); ++i) {
      if (machine_.pci[i].parent < 0 && is_here(machine_.pci[i].numa)) write_pci(i, 2);
    }
    for (const Gpu& gpu : machine_.gpus) {
      if (id != -1 || !is_loose(gpu)) continue;
      line(2, "<pci" + attribute("busid", gpu.pci_id) + attribute("class", "0x030200") + ">");
      write_gpu(gpu, 3);
      line(2, "</pci>");
    }
    write_nics(2, [&](const Nic& nic) { return is_loose(nic) && is_here(nic.numa); });
    line(1, "</cpu>");
  }

  void write_pci(size_t index, int depth) {
    const PciDevice& device = machine_.pci[index];
    char speed[32] = "";
    if (device.link.gigatransfers > 0) {
      std::snprintf(speed, sizeof speed, "%.1f GT/s PCIe", device.link.gigatransfers);
    }
    line(depth,
         "<pci" + attribute("busid", device.id) + hexadecimal("class", device.device_class, 6) +
             hexadecimal("vendor", device.vendor, 4) + hexadecimal("device", device.device, 4) +
             attribute("link_speed", speed) +
             attribute("link_width", std::to_string(device.link.width)) + extra(device) + ">");
    for (const Gpu& gpu : machine_.gpus) {
      if (gpu.pci_id == device.id && (gpu.links_known || extras_)) write_gpu(gpu, depth + 1);
    }
    write_nics(depth + 1, [&](const Nic& nic) {
      return nic.pci_id == device.id && (extras_ || nic.name != device.id);
    });
    for (size_t child = index + 1; child < machine_.pci.size(); ++child) {
      if (machine_.pci[child].parent == static_cast<int32_t>(index)) write_pci(child, depth + 1);
    }
    line(depth, "</pci>");
  }

  void write_gpu(const Gpu& gpu, int depth) {
    std::string open = "<gpu" + attribute("dev", std::to_string(gpu.index));
    const std::string gfx = "AMD gfx";
    if (gpu.amd && gpu.name.starts_with(gfx)) open += attribute("gcn", gpu.name.substr(gfx.size()));
    if (!gpu.amd) open += attribute("sm", std::to_string(gpu.compute_capability));
    open += attribute("rank", std::to_string(gpu.index));
    if (gpu.gdr) open += attribute("gdr", *gpu.gdr ? "1" : "0");
    line(depth, open + extra(gpu) + ">");
    if (extras_) line(depth + 1, extra_children(gpu));
    for (const GpuLinks& links : gpu.links) {
      const std::string count = attribute("count", std::to_string(links.count));
      if (links.kind == LinkKind::kC2c) {
        const auto megabytes = static_cast<int64_t>(links.bytes_per_s / 1e6);
        line(depth + 1, "<c2c" + attribute("bw", std::to_string(megabytes)) + count + "/>");
        continue;
      }
      if (links.target.empty()) continue;  // to its CPU, or the driver did not tell
      line(depth + 1, std::string(links.kind == LinkKind::kXgmi ? "<xgmi" : "<nvlink") +
                          attribute("target", links.target) + count + target_class(links) +
                          (extras_ && links.bytes_per_s > 0
                               ? attribute("bytes_per_s", std::to_string(links.bytes_per_s))
                               : "") +
                          "/>");
    }
    line(depth, "</gpu>");
  }

  static std::string target_class(const GpuLinks& links) {
    switch (links.remote) {
      case Remote::kSwitch: return attribute("tclass", "0x068000");
      case Remote::kCpu: return attribute("tclass", "0x068001");
      case Remote::kGpu: return attribute("tclass", "0x030200");
      case Remote::kUnknown: break;
    }
    return "";
  }

  template <class Belongs>
  void write_nics(int depth, const Belongs& belongs) {
    bool any = false;
    for (size_t i = 0; i < machine_.nics.size(); ++i) {
      const Nic& nic = machine_.nics[i];
      if (!belongs(nic)) continue;
      if (!any) line(depth, "<nic>");
      any = true;
      line(depth + 1,
           "<net" + attribute("name", nic.name) + attribute("dev", std::to_string(i)) +
               attribute("speed", std::to_string(static_cast<int64_t>(nic.bits_per_s / 1e6))) +
               attribute("port", std::to_string(nic.port)) +
               attribute("guid", nic.guid.empty() ? "0x0" : nic.guid) +
               (nic.gdr || !extras_ ? attribute("gdr", nic.gdr.value_or(false) ? "1" : "0") : "") +
               extra(nic) + ">" + (extras_ ? extra_children(nic) : "") + "</net>");
    }
    if (any) line(depth, "</nic>");
  }

  template <class Item>
  std::string extra(const Item& item) const {
    return extras_ ? extra_attributes(item) : "";
  }

  const Machine& machine_;
  const bool extras_;
  std::string text_;
};

}  // namespace

std::string write_nccl_xml(const Machine& machine, bool extras) {
  return NcclWriter(machine, extras).write();
}

}  // namespace trireme
