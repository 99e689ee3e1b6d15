// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "topology/machine_text.h"
#include "topology/nvml_library.h"
#include "topology/probe_machine.h"

namespace trireme {
namespace {

using nvml::Api;
using nvml::Device;
using nvml::kSuccess;
using nvml::Result;

// A text that a driver filled in: ends somewhere, and may hold any byte.
template <size_t N>
std::string text_of(const char (&buffer)[N]) {
  std::string text(buffer, strnlen(buffer, N));
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, '?');
  return text;
}

class NvmlProbe {
 public:
  NvmlProbe(const std::string& library, Machine& machine)
      : library_(library), api_(library_.api()), machine_(machine) {}

  void run() {
    if (!library_.missing().empty()) return missing(library_.missing());
    unsigned count = 0;
    if (const Result result = api_.count(&count); result != kSuccess) return missing(words(result));
    if (count == 0) return missing("the driver has no GPU");
    for (unsigned i = 0; i < std::min<unsigned>(count, kMaxGpus); ++i) probe_gpu(i);
    check_peers();
  }

 private:
  void missing(const std::string& reason) { machine_.missing.push_back("NVML: " + reason); }

  std::string words(Result result) const { return library_.words(result); }

  // Whether a query gave its answer. What a device does not support is no failure.
  template <class... Parameters, class... Arguments>
  bool ask(Gpu& gpu, const char* what, Result (*query)(Parameters...),
           Arguments... arguments) const {
    if (query == nullptr) return false;
    const Result result = query(arguments...);
    if (result == kSuccess) return true;
    if (result != nvml::kNotSupported && result != nvml::kFunctionNotFound) {
      gpu.notes.push_back("the driver did not tell its " + std::string(what) + ": " +
                          words(result));
    }
    return false;
  }

  void probe_gpu(unsigned index) {
    Device device = nullptr;
    nvml::PciInfo pci = {};
    Result result = api_.handle(index, &device);
    if (result == kSuccess) result = api_.pci(device, &pci);
    const std::string id = read_pci_id(text_of(pci.id));
    if (result != kSuccess || id.empty()) {
      machine_.notes.push_back(
          "GPU " + std::to_string(index) + " is lost to the driver: " +
          (result == kSuccess ? "its PCI id is \"" + text_of(pci.id) + "\"" : words(result)));
      return;
    }
    Gpu& gpu = find_or_add(id, pci);
    gpu.index = static_cast<int32_t>(index);
    devices_.emplace(id, device);
    ask_identity(device, gpu);
    ask_health(device, gpu);
    ask_errors(device, gpu);
    ask_fabric(device, gpu);
    ask_links(device, gpu);
  }

  // Of a container that hides sysfs the driver alone knows.
  Gpu& find_or_add(const std::string& id, const nvml::PciInfo& pci) {
    const int32_t known = machine_.find_gpu(id);
    if (known >= 0) return machine_.gpus[static_cast<size_t>(known)];
    if (machine_.find_pci(id) < 0) {
      PciDevice& device = machine_.pci.emplace_back();
      device.id = id;
      device.device_class = 0x030200;
      device.vendor = static_cast<int32_t>(pci.device_id & 0xffff);
      device.device = static_cast<int32_t>(pci.device_id >> 16);
    }
    Gpu& gpu = machine_.gpus.emplace_back();
    gpu.pci_id = id;
    return gpu;
  }

  void ask_identity(Device device, Gpu& gpu) const {
    char text[96] = {};
    if (ask(gpu, "name", api_.name, device, text, sizeof text)) gpu.name = text_of(text);
    std::memset(text, 0, sizeof text);
    if (ask(gpu, "UUID", api_.uuid, device, text, sizeof text)) gpu.uuid = text_of(text);
    nvml::Memory memory = {};
    if (ask(gpu, "memory", api_.memory, device, &memory)) {
      gpu.memory_bytes = memory.total;
      gpu.free_bytes = memory.free;
    }
    int major = 0, minor = 0;
    if (ask(gpu, "compute capability", api_.capability, device, &major, &minor) && major > 0 &&
        major < 100 && minor >= 0 && minor < 10) {
      gpu.compute_capability = 10 * major + minor;
    }
  }

  void ask_health(Device device, Gpu& gpu) const {
    Health& health = gpu.health;
    unsigned value = 0;
    if (ask(gpu, "temperature", api_.temperature, device, 0, &value)) health.temperature_c = value;
    if (ask(gpu, "slowdown temperature", api_.threshold, device, nvml::kThresholdSlowdown,
            &value)) {
      health.slowdown_c = value;
    }
    if (ask(gpu, "power", api_.power, device, &value)) health.power_w = value / 1000.0;
    if (ask(gpu, "power limit", api_.power_limit, device, &value)) {
      health.power_limit_w = value / 1000.0;
    }
    if (ask(gpu, "clock", api_.clock, device, nvml::kClockSm, &value)) health.sm_clock_mhz = value;
    if (ask(gpu, "highest clock", api_.max_clock, device, nvml::kClockSm, &value)) {
      health.max_sm_clock_mhz = value;
    }
    unsigned long long reasons = 0;
    if (ask(gpu, "throttle reasons", api_.throttle, device, &reasons)) {
      health.throttle_reasons = reasons;
    }
  }

  void ask_errors(Device device, Gpu& gpu) const {
    unsigned long long count = 0;
    if (ask(gpu, "uncorrected memory errors", api_.ecc, device, nvml::kEccUncorrected,
            nvml::kEccSinceDriver, &count)) {
      gpu.health.ecc_uncorrected = count;
    }
    if (ask(gpu, "corrected memory errors", api_.ecc, device, nvml::kEccCorrected,
            nvml::kEccSinceDriver, &count)) {
      gpu.health.ecc_corrected = count;
    }
    unsigned corrected = 0, uncorrected = 0, pending = 0, failed = 0;
    if (ask(gpu, "remapped rows", api_.remapped, device, &corrected, &uncorrected, &pending,
            &failed)) {
      gpu.health.row_remap_pending = pending != 0;
      gpu.health.row_remap_failed = failed != 0;
    }
  }

  void ask_fabric(Device device, Gpu& gpu) const {
    nvml::FabricInfo info = {};
    info.version = uint32_t{3} << 24 | sizeof info;
    if (api_.fabric == nullptr) return;
    // Drivers before version 3 know version 2.
    if (api_.fabric(device, &info) != kSuccess) {
      info = {};
      info.version = uint32_t{2} << 24 | nvml::kFabricV2Bytes;
      if (!ask(gpu, "fabric", api_.fabric, device, &info)) return;
    }
    if (info.state == nvml::kFabricUnsupported) return;
    gpu.health.fabric_state = info.state == nvml::kFabricNotStarted   ? "not started"
                              : info.state == nvml::kFabricInProgress ? "in progress"
                                                                      : "completed";
    if (info.state != nvml::kFabricCompleted) return;
    if (info.status != kSuccess) {
      gpu.health.fabric_faults.push_back("registration failed: " + words(info.status));
    }
    char id[64] = {};
    for (size_t i = 0; i < sizeof info.cluster; ++i) {
      std::snprintf(id + 2 * i, 3, "%02x", info.cluster[i]);
    }
    if (std::string(id).find_first_not_of('0') != std::string::npos) {
      gpu.fabric_id = std::string(id) + ":" + std::to_string(info.clique);
    }
    add_faults(info, gpu.health.fabric_faults);
  }

  // Bits of the mask, by twos: 1 says true.
  static void add_faults(const nvml::FabricInfo& info, std::vector<std::string>& faults) {
    const auto is_true = [&](int shift) { return ((info.health_mask >> shift) & 3) == 1; };
    if (is_true(0)) faults.emplace_back("bandwidth is degraded");
    if (is_true(2)) faults.emplace_back("a route is being recovered");
    if (is_true(4)) faults.emplace_back("a route is unhealthy");
    if (is_true(6)) faults.emplace_back("recovers from an access timeout");
    constexpr const char* kConfiguration[] = {
        "wrong system GUID",    "wrong chassis serial number", "no partition",
        "insufficient NVLinks", "incompatible firmware",       "invalid location",
        "invalid GPU state"};
    const uint32_t configuration = (info.health_mask >> 8) & 0xf;
    if (configuration >= 2 && configuration - 2 < std::size(kConfiguration)) {
      faults.emplace_back(kConfiguration[configuration - 2]);
    }
    constexpr unsigned char kUnhealthy = 2, kLimited = 3;
    if (faults.empty() && info.health_summary == kUnhealthy) faults.emplace_back("unhealthy");
    if (faults.empty() && info.health_summary == kLimited) faults.emplace_back("limited capacity");
  }

  void ask_links(Device device, Gpu& gpu) const {
    if (api_.link_state == nullptr) return;
    gpu.links_known = true;
    std::string unasked, remoteless;
    for (unsigned link = 0; link < nvml::kMaxLinks; ++link) {
      int active = 0;
      const Result result = api_.link_state(device, link, &active);
      if (result == nvml::kNotSupported || result == nvml::kInvalidArgument) break;  // has no more
      if (result != kSuccess) {
        unasked +=
            (unasked.empty() ? "" : ", ") + std::to_string(link) + " (" + words(result) + ")";
      }
      if (result != kSuccess || active == 0) {
        ++gpu.links_down;
        continue;
      }
      GpuLinks one = remote_of(device, link);
      if (one.target.empty() || one.remote == Remote::kUnknown) {
        remoteless += (remoteless.empty() ? "" : ", ") + std::to_string(link);
      }
      one.bytes_per_s = payload(device, gpu, link);
      gpu.links.push_back(one);
      note_errors(device, gpu, link);
    }
    if (!unasked.empty())
      gpu.notes.push_back("the driver did not tell the state of NVLink " + unasked);
    if (!remoteless.empty()) {
      gpu.notes.push_back("the driver did not tell where NVLink " + remoteless + " leads");
    }
  }

  GpuLinks remote_of(Device device, unsigned link) const {
    GpuLinks one{LinkKind::kNvLink, Remote::kUnknown, "", 1, 0};
    nvml::PciInfo pci = {};
    int type = 0xff;
    if (api_.link_remote != nullptr && api_.link_remote(device, link, &pci) == kSuccess) {
      one.target = read_pci_id(text_of(pci.id));
    }
    if (api_.link_remote_type != nullptr &&
        api_.link_remote_type(device, link, &type) == kSuccess) {
      one.remote = type == nvml::kRemoteGpu      ? Remote::kGpu
                   : type == nvml::kRemoteNpu    ? Remote::kCpu
                   : type == nvml::kRemoteSwitch ? Remote::kSwitch
                                                 : Remote::kUnknown;
    }
    return one;
  }

  bool field(Device device, unsigned link, uint32_t id, double& value) const {
    nvml::FieldValue field = {};
    field.field = id;
    field.scope = link;
    if (api_.fields == nullptr || api_.fields(device, 1, &field) != kSuccess) return false;
    if (field.result != kSuccess) return false;
    switch (field.type) {
      case nvml::kDouble: value = field.value.as_double; break;
      case nvml::kUint: value = field.value.as_uint; break;
      case nvml::kSint: value = field.value.as_int; break;
      case nvml::kLonglong: value = static_cast<double>(field.value.as_long); break;
      default: value = static_cast<double>(field.value.as_ulong); break;
    }
    return value >= 0;
  }

  // The driver tells the signalling rate, of which 94 % are payload: used only where a link is far
  // from what its generation has, or the generation is not known.
  double payload(Device device, Gpu& gpu, unsigned link) const {
    constexpr double kShare = 0.941, kFar = 0.85;
    double megabytes = 0;
    if (!field(device, link, nvml::kLinkSpeed, megabytes) || megabytes <= 0 || megabytes > 1e6)
      return 0;
    const double bytes = kShare * 1e6 * megabytes, nominal = nvlink_bytes_per_s(gpu);
    if (nominal > 0 && bytes >= kFar * nominal) return 0;
    if (nominal > 0) {
      gpu.notes.push_back("NVLink " + std::to_string(link) + " runs at " +
                          std::to_string(static_cast<int>(bytes / 1e9)) + " GB/s of " +
                          std::to_string(static_cast<int>(nominal / 1e9)));
    }
    return bytes;
  }

  void note_errors(Device device, Gpu& gpu, unsigned link) const {
    double recoveries = 0, crc = 0;
    field(device, link, nvml::kLinkRecovery, recoveries);
    field(device, link, nvml::kLinkCrc, crc);
    if (recoveries <= 0 && crc <= 0) return;
    char text[96];
    std::snprintf(text, sizeof text, "NVLink %u: %.0f recoveries, %.0f CRC errors", link,
                  recoveries, crc);
    gpu.notes.emplace_back(text);
  }

  // Drivers of consumer cards refuse peers over PCIe.
  void check_peers() {
    if (api_.p2p == nullptr) return;
    int pairs = 0, refused = 0;
    for (const auto& [a, one] : devices_) {
      for (const auto& [b, other] : devices_) {
        int status = 0;
        if (a == b || api_.p2p(one, other, nvml::kP2pRead, &status) != kSuccess) continue;
        ++pairs;
        refused += status != 0 ? 1 : 0;
      }
    }
    if (refused == 0) return;
    machine_.notes.push_back(
        "the driver refuses peer access for " + std::to_string(refused) + " of " +
        std::to_string(pairs) +
        " ordered pairs of GPUs: what they send goes through the host's memory");
  }

  const nvml::Library library_;
  const Api& api_;
  Machine& machine_;
  std::map<std::string, Device> devices_;
};

}  // namespace

void probe_nvml(const std::string& library, Machine& machine) { NvmlProbe(library, machine).run(); }

}  // namespace trireme
