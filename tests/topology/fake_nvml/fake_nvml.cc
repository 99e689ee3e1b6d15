// SPDX-License-Identifier: Apache-2.0
// A libnvidia-ml that serves a profile of nvml-mock (TRIREME_FAKE_NVML_PROFILE), with faults
// (TRIREME_FAKE_NVML_FAULTS, commas between them):
//   hot:GPU               91 C, thermal slowdown, clocks 40 % down
//   lost_link:GPU:LINK    that NVLink is inactive
//   lost_links:GPU        all of them are
//   slow_link:GPU:LINK    it runs at half of its speed
//   fail:GPU:FUNCTION     that call gives "Unknown Error"; GPU * for every one
//   fabric:GPU            the fabric says: insufficient NVLinks
//   starting:GPU          its registration with the fabric is in progress
//   ecc:GPU               three uncorrected memory errors
//   user:GPU:PID:MIB      another process computes there
//   no_peers              peer access is refused for every pair
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "topology/nvml_api.h"
#include "topology/yaml.h"

namespace {

using trireme::YamlNode;
using trireme::nvml::FabricInfo;
using trireme::nvml::FieldValue;
using trireme::nvml::Memory;
using trireme::nvml::PciInfo;
using trireme::nvml::Result;

constexpr Result kSuccess = 0, kInvalidArgument = 2, kNotSupported = 3, kDriverNotLoaded = 9,
                 kUnknown = 999;

struct FakeDevice {
  int index;
  const YamlNode* own;
};

struct Fake {
  YamlNode root;
  std::vector<FakeDevice> devices;
  std::set<std::string> faults;

  bool has(const std::string& fault) const { return faults.count(fault) > 0; }
};
std::unique_ptr<Fake> fake;

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

const FakeDevice& device_of(void* handle) { return *static_cast<FakeDevice*>(handle); }

bool has_fault(void* handle, const std::string& kind, const std::string& tail = "") {
  const std::string end = tail.empty() ? "" : ":" + tail;
  return fake->has(kind + ":" + std::to_string(device_of(handle).index) + end) ||
         fake->has(kind + ":*" + end);
}

bool fails(void* handle, const char* function) { return has_fault(handle, "fail", function); }

std::string text_at(void* handle, const char* path) {
  const YamlNode* node = device_of(handle).own->at(path);
  if (node == nullptr) node = fake->root.at(std::string("device_defaults.") + path);
  return node == nullptr ? "" : node->scalar;
}

std::optional<long long> number_at(void* handle, const char* path) {
  const std::string text = text_at(handle, path);
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 0);
  if (text.empty() || *end != '\0') return std::nullopt;
  return value;
}

template <class T>
Result give(void* handle, const char* function, const char* path, T* to) {
  if (fails(handle, function)) return kUnknown;
  const auto value = number_at(handle, path);
  if (!value) return kNotSupported;
  *to = static_cast<T>(*value);
  return kSuccess;
}

Result give_text(void* handle, const char* function, const char* path, char* to, unsigned size) {
  if (fails(handle, function)) return kUnknown;
  const std::string text = text_at(handle, path);
  if (text.empty()) return kNotSupported;
  if (text.size() >= size) return kInvalidArgument;
  std::strcpy(to, text.c_str());
  return kSuccess;
}

Result fill_pci(const std::string& bus, unsigned id, PciInfo* pci) {
  *pci = {};
  pci->device_id = id;
  // As the driver writes it: eight digits of domain.
  const std::string text = bus.size() == 12 ? "0000" + bus : bus;
  std::strncpy(pci->id, text.c_str(), sizeof pci->id - 1);
  return kSuccess;
}

long long links_per_gpu() {
  const YamlNode* const links = fake->root.at("nvlink.links_per_gpu");
  const YamlNode* const switches = fake->root.at("nvlink.switches");
  return links == nullptr || switches == nullptr ? 0 : std::atoll(links->scalar.c_str());
}

Result check_link(void* handle, unsigned link) {
  if (links_per_gpu() == 0) return kNotSupported;
  if (link >= links_per_gpu()) return kInvalidArgument;
  (void)handle;
  return kSuccess;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Result nvmlInit_v2() {
  std::ifstream file(environment("TRIREME_FAKE_NVML_PROFILE"));
  if (!file) return kDriverNotLoaded;
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  fake = std::make_unique<Fake>();
  fake->root = trireme::parse_yaml(text, "profile");
  std::istringstream faults(environment("TRIREME_FAKE_NVML_FAULTS"));
  for (std::string fault; std::getline(faults, fault, ',');) fake->faults.insert(fault);
  const YamlNode* const devices = fake->root.find("devices");
  if (devices == nullptr) return kDriverNotLoaded;
  for (const YamlNode& device : devices->items) {
    fake->devices.push_back({static_cast<int>(fake->devices.size()), &device});
  }
  return kSuccess;
}

EXPORT Result nvmlShutdown() {
  fake.reset();
  return kSuccess;
}

EXPORT const char* nvmlErrorString(Result result) {
  switch (result) {
    case kSuccess: return "Success";
    case kInvalidArgument: return "Invalid Argument";
    case kNotSupported: return "Not Supported";
    case kDriverNotLoaded: return "Driver Not Loaded";
    default: return "Unknown Error";
  }
}

EXPORT Result nvmlDeviceGetCount_v2(unsigned* count) {
  *count = static_cast<unsigned>(fake->devices.size());
  return kSuccess;
}

EXPORT Result nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  if (index >= fake->devices.size()) return kInvalidArgument;
  *handle = &fake->devices[index];
  return fails(*handle, "nvmlDeviceGetHandleByIndex_v2") ? kUnknown : kSuccess;
}

EXPORT Result nvmlDeviceGetPciInfo_v3(void* handle, PciInfo* pci) {
  return fill_pci(text_at(handle, "pci.bus_id"),
                  static_cast<unsigned>(number_at(handle, "pci.device_id").value_or(0)), pci);
}

EXPORT Result nvmlDeviceGetName(void* handle, char* name, unsigned size) {
  return give_text(handle, "nvmlDeviceGetName", "name", name, size);
}

EXPORT Result nvmlDeviceGetUUID(void* handle, char* uuid, unsigned size) {
  return give_text(handle, "nvmlDeviceGetUUID", "uuid", uuid, size);
}

EXPORT Result nvmlDeviceGetMemoryInfo(void* handle, Memory* memory) {
  const Result result =
      give(handle, "nvmlDeviceGetMemoryInfo", "memory.total_bytes", &memory->total);
  if (result != kSuccess) return result;
  memory->free =
      static_cast<unsigned long long>(number_at(handle, "memory.free_bytes").value_or(0));
  memory->used = memory->total - memory->free;
  return kSuccess;
}

EXPORT Result nvmlDeviceGetCudaComputeCapability(void* handle, int* major, int* minor) {
  const Result result =
      give(handle, "nvmlDeviceGetCudaComputeCapability", "compute_capability.major", major);
  *minor = static_cast<int>(number_at(handle, "compute_capability.minor").value_or(0));
  return result;
}

EXPORT Result nvmlDeviceGetTemperature(void* handle, int, unsigned* value) {
  const Result result =
      give(handle, "nvmlDeviceGetTemperature", "thermal.temperature_gpu_c", value);
  if (result == kSuccess && has_fault(handle, "hot")) *value = 91;
  return result;
}

EXPORT Result nvmlDeviceGetTemperatureThreshold(void* handle, int which, unsigned* value) {
  if (which != 1) return kNotSupported;
  return give(handle, "nvmlDeviceGetTemperatureThreshold", "thermal.slowdown_threshold_c", value);
}

EXPORT Result nvmlDeviceGetPowerUsage(void* handle, unsigned* value) {
  return give(handle, "nvmlDeviceGetPowerUsage", "power.current_draw_mw", value);
}

EXPORT Result nvmlDeviceGetEnforcedPowerLimit(void* handle, unsigned* value) {
  return give(handle, "nvmlDeviceGetEnforcedPowerLimit", "power.enforced_limit_mw", value);
}

EXPORT Result nvmlDeviceGetMaxClockInfo(void* handle, int, unsigned* value) {
  return give(handle, "nvmlDeviceGetMaxClockInfo", "clocks.sm_max", value);
}

EXPORT Result nvmlDeviceGetClockInfo(void* handle, int, unsigned* value) {
  if (has_fault(handle, "hot")) {
    *value = static_cast<unsigned>(number_at(handle, "clocks.sm_max").value_or(0) * 6 / 10);
    return kSuccess;
  }
  return give(handle, "nvmlDeviceGetClockInfo", "clocks.sm_current", value);
}

EXPORT Result nvmlDeviceGetCurrentClocksThrottleReasons(void* handle, unsigned long long* reasons) {
  if (fails(handle, "nvmlDeviceGetCurrentClocksThrottleReasons")) return kUnknown;
  *reasons = text_at(handle, "clocks_throttle_reasons.gpu_idle") == "true" ? 0x1 : 0;
  if (has_fault(handle, "hot")) *reasons = 0x8 | 0x40;
  return kSuccess;
}

EXPORT Result nvmlDeviceGetTotalEccErrors(void* handle, int type, int, unsigned long long* count) {
  const char* const path =
      type == 0 ? "ecc.errors.volatile.single_bit.total" : "ecc.errors.volatile.double_bit.total";
  const Result result = give(handle, "nvmlDeviceGetTotalEccErrors", path, count);
  if (result == kSuccess && type == 1 && has_fault(handle, "ecc")) *count = 3;
  return result;
}

EXPORT Result nvmlDeviceGetRemappedRows(void* handle, unsigned* corrected, unsigned* uncorrected,
                                        unsigned* pending, unsigned* failed) {
  const Result result =
      give(handle, "nvmlDeviceGetRemappedRows", "remapped_rows.correctable", corrected);
  *uncorrected =
      static_cast<unsigned>(number_at(handle, "remapped_rows.uncorrectable").value_or(0));
  *pending = text_at(handle, "remapped_rows.pending") == "true" ? 1 : 0;
  *failed = text_at(handle, "remapped_rows.failure_occurred") == "true" ? 1 : 0;
  return result;
}

EXPORT Result nvmlDeviceGetNvLinkState(void* handle, unsigned link, int* active) {
  if (const Result result = check_link(handle, link); result != kSuccess) return result;
  if (fails(handle, "nvmlDeviceGetNvLinkState")) return kUnknown;
  *active = has_fault(handle, "lost_links") || has_fault(handle, "lost_link", std::to_string(link))
                ? 0
                : 1;
  return kSuccess;
}

EXPORT Result nvmlDeviceGetNvLinkRemotePciInfo_v2(void* handle, unsigned link, PciInfo* pci) {
  if (const Result result = check_link(handle, link); result != kSuccess) return result;
  if (fails(handle, "nvmlDeviceGetNvLinkRemotePciInfo_v2")) return kUnknown;
  const std::vector<YamlNode>& switches = fake->root.at("nvlink.switches")->items;
  return fill_pci(switches[link % switches.size()].find("bdf")->scalar, 0x22a310de, pci);
}

EXPORT Result nvmlDeviceGetNvLinkRemoteDeviceType(void* handle, unsigned link, int* type) {
  if (const Result result = check_link(handle, link); result != kSuccess) return result;
  *type = 2;
  return fails(handle, "nvmlDeviceGetNvLinkRemoteDeviceType") ? kUnknown : kSuccess;
}

EXPORT Result nvmlDeviceGetFieldValues(void* handle, int count, FieldValue* values) {
  if (fails(handle, "nvmlDeviceGetFieldValues")) return kUnknown;
  for (int i = 0; i < count; ++i) {
    FieldValue& value = values[i];
    value.result = check_link(handle, value.scope);
    value.type = trireme::nvml::kUint;
    value.value.as_uint = 0;
    if (value.field != trireme::nvml::kLinkSpeed || value.result != kSuccess) continue;
    const YamlNode* const speed = fake->root.at("nvlink.bandwidth_per_link_mbps");
    value.value.as_uint =
        speed == nullptr ? 0 : static_cast<unsigned>(std::atoi(speed->scalar.c_str()));
    if (has_fault(handle, "slow_link", std::to_string(value.scope))) value.value.as_uint /= 2;
  }
  return kSuccess;
}

EXPORT Result nvmlDeviceGetGpuFabricInfoV(void* handle, FabricInfo* info) {
  // This one knows version 2 only: the probe has to fall back.
  constexpr unsigned kVersion2 = 2u << 24 | trireme::nvml::kFabricV2Bytes;
  if (info->version != kVersion2) return 25;
  if (fails(handle, "nvmlDeviceGetGpuFabricInfoV")) return kUnknown;
  const std::string uuid = text_at(handle, "fabric.cluster_uuid");
  if (uuid.empty()) return kNotSupported;
  info->state = has_fault(handle, "starting") ? 2 : 3;
  info->status = kSuccess;
  info->clique = static_cast<unsigned>(number_at(handle, "fabric.clique_id").value_or(0));
  info->cluster[15] = static_cast<unsigned char>(uuid.back() - '0');
  info->health_mask = 2 | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8;
  if (has_fault(handle, "fabric")) info->health_mask = 2 | 2 << 2 | 2 << 4 | 2 << 6 | 5 << 8;
  return kSuccess;
}

EXPORT Result nvmlDeviceGetComputeRunningProcesses_v3(void* handle, unsigned* count,
                                                      trireme::nvml::ProcessInfo* processes) {
  if (fails(handle, "nvmlDeviceGetComputeRunningProcesses_v3")) return kUnknown;
  std::vector<trireme::nvml::ProcessInfo> found{{static_cast<unsigned>(getpid()), 1 << 20, 0, 0}};
  const std::string prefix = "user:" + std::to_string(device_of(handle).index) + ":";
  for (const std::string& fault : fake->faults) {
    if (!fault.starts_with(prefix)) continue;
    char* end = nullptr;
    const auto pid = static_cast<unsigned>(std::strtoul(fault.c_str() + prefix.size(), &end, 10));
    found.push_back({pid, std::strtoull(end + 1, nullptr, 10) << 20, 0, 0});
  }
  constexpr Result kInsufficientSize = 7;
  const unsigned room = *count;
  *count = static_cast<unsigned>(found.size());
  if (found.size() > room) return kInsufficientSize;
  std::copy(found.begin(), found.end(), processes);
  return kSuccess;
}

EXPORT Result nvmlDeviceGetP2PStatus(void*, void*, int, int* status) {
  *status = fake->has("no_peers") ? 1 : 0;
  return kSuccess;
}
