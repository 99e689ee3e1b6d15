// SPDX-License-Identifier: Apache-2.0
// The few declarations of NVIDIA's management library that the probe needs, as its binary interface
// has them: names, numbers and layouts are facts of libnvidia-ml.so.1. Nothing is linked.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trireme::nvml {

using Device = void*;
using Result = int;

inline constexpr Result kSuccess = 0, kInvalidArgument = 2, kNotSupported = 3,
                        kFunctionNotFound = 13;

struct PciInfo {
  char legacy_id[16];
  uint32_t domain, bus, device;
  uint32_t device_id;  // device << 16 | vendor
  uint32_t subsystem_id;
  char id[32];
};
struct Memory {
  unsigned long long total, free, used;
};
struct ProcessInfo {
  uint32_t pid;
  unsigned long long used_bytes;  // all bits set: not known
  uint32_t gpu_instance, compute_instance;
};
struct FieldValue {
  uint32_t field, scope;
  long long timestamp, latency_us;
  int type;
  Result result;
  union {
    double as_double;
    uint32_t as_uint;
    unsigned long long as_ulong;
    long long as_long;
    int as_int;
  } value;
};
struct FabricInfo {  // version 3; version 2 lacks the last field
  uint32_t version;
  unsigned char cluster[16];
  Result status;
  uint32_t clique;
  unsigned char state;
  uint32_t health_mask;
  unsigned char health_summary;
};
inline constexpr size_t kFabricV2Bytes = 36;
static_assert(sizeof(PciInfo) == 68 && sizeof(ProcessInfo) == 24 && sizeof(FieldValue) == 40 &&
              sizeof(FabricInfo) == 40);
static_assert(offsetof(FabricInfo, health_mask) == 32);

// Values of FieldValue.type.
enum ValueType { kDouble = 0, kUint = 1, kUlong = 2, kUlonglong = 3, kLonglong = 4, kSint = 5 };

inline constexpr uint32_t kLinkRecovery = 162, kLinkCrc = 163,
                          kLinkSpeed = 164;  // fields of a link
inline constexpr uint32_t kMaxLinks = 36;
inline constexpr int kRemoteGpu = 0, kRemoteNpu = 1, kRemoteSwitch = 2;
inline constexpr int kClockSm = 1;
inline constexpr int kThresholdSlowdown = 1;
inline constexpr int kEccCorrected = 0, kEccUncorrected = 1, kEccSinceDriver = 0;
inline constexpr unsigned char kFabricUnsupported = 0, kFabricNotStarted = 1, kFabricInProgress = 2,
                               kFabricCompleted = 3;
inline constexpr int kP2pRead = 0;

// Every function that is called: its name in the library, and its type without the result.
struct Api {
  Result (*init)();
  Result (*shutdown)();
  const char* (*error_string)(Result);
  Result (*driver_version)(char*, unsigned);
  Result (*count)(unsigned*);
  Result (*handle)(unsigned, Device*);
  Result (*pci)(Device, PciInfo*);
  Result (*name)(Device, char*, unsigned);
  Result (*uuid)(Device, char*, unsigned);
  Result (*memory)(Device, Memory*);
  Result (*capability)(Device, int*, int*);
  Result (*temperature)(Device, int sensor, unsigned*);
  Result (*threshold)(Device, int which, unsigned*);
  Result (*power)(Device, unsigned*);
  Result (*power_limit)(Device, unsigned*);
  Result (*clock)(Device, int which, unsigned*);
  Result (*max_clock)(Device, int which, unsigned*);
  Result (*throttle)(Device, unsigned long long*);
  Result (*ecc)(Device, int type, int since, unsigned long long*);
  Result (*remapped)(Device, unsigned* corrected, unsigned* uncorrected, unsigned* pending,
                     unsigned* failed);
  Result (*link_state)(Device, unsigned link, int*);
  Result (*link_remote)(Device, unsigned link, PciInfo*);
  Result (*link_remote_type)(Device, unsigned link, int*);
  Result (*fields)(Device, int count, FieldValue*);
  Result (*fabric)(Device, FabricInfo*);
  Result (*p2p)(Device, Device, int which, int*);
  Result (*processes)(Device, unsigned* count, ProcessInfo*);
};

struct Symbol {
  const char* name;
  size_t offset;  // in Api
};
inline constexpr Symbol kSymbols[] = {
    {"nvmlInit_v2", offsetof(Api, init)},
    {"nvmlShutdown", offsetof(Api, shutdown)},
    {"nvmlErrorString", offsetof(Api, error_string)},
    {"nvmlSystemGetDriverVersion", offsetof(Api, driver_version)},
    {"nvmlDeviceGetCount_v2", offsetof(Api, count)},
    {"nvmlDeviceGetHandleByIndex_v2", offsetof(Api, handle)},
    {"nvmlDeviceGetPciInfo_v3", offsetof(Api, pci)},
    {"nvmlDeviceGetName", offsetof(Api, name)},
    {"nvmlDeviceGetUUID", offsetof(Api, uuid)},
    {"nvmlDeviceGetMemoryInfo", offsetof(Api, memory)},
    {"nvmlDeviceGetCudaComputeCapability", offsetof(Api, capability)},
    {"nvmlDeviceGetTemperature", offsetof(Api, temperature)},
    {"nvmlDeviceGetTemperatureThreshold", offsetof(Api, threshold)},
    {"nvmlDeviceGetPowerUsage", offsetof(Api, power)},
    {"nvmlDeviceGetEnforcedPowerLimit", offsetof(Api, power_limit)},
    {"nvmlDeviceGetClockInfo", offsetof(Api, clock)},
    {"nvmlDeviceGetMaxClockInfo", offsetof(Api, max_clock)},
    {"nvmlDeviceGetCurrentClocksThrottleReasons", offsetof(Api, throttle)},
    {"nvmlDeviceGetTotalEccErrors", offsetof(Api, ecc)},
    {"nvmlDeviceGetRemappedRows", offsetof(Api, remapped)},
    {"nvmlDeviceGetNvLinkState", offsetof(Api, link_state)},
    {"nvmlDeviceGetNvLinkRemotePciInfo_v2", offsetof(Api, link_remote)},
    {"nvmlDeviceGetNvLinkRemoteDeviceType", offsetof(Api, link_remote_type)},
    {"nvmlDeviceGetFieldValues", offsetof(Api, fields)},
    {"nvmlDeviceGetGpuFabricInfoV", offsetof(Api, fabric)},
    {"nvmlDeviceGetP2PStatus", offsetof(Api, p2p)},
    {"nvmlDeviceGetComputeRunningProcesses_v3", offsetof(Api, processes)},
};
static_assert(sizeof kSymbols / sizeof(Symbol) == sizeof(Api) / sizeof(void*));

}  // namespace trireme::nvml
