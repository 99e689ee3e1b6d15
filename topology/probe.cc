// SPDX-License-Identifier: Apache-2.0
#include "topology/probe.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "topology/cgroup.h"

namespace trireme {
namespace {

// The number after `key` in a file of "Key: value" lines, or nothing.
std::string value_after(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t:", key.size());
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

uint64_t available_memory() {
  const std::string text = value_after("/proc/meminfo", "MemAvailable");
  return text.empty() ? 0 : std::strtoull(text.c_str(), nullptr, 10) * 1024;
}

}  // namespace

std::vector<int32_t> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_SET(0, &set);
  std::vector<int32_t> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

DeviceInfo probe_cpu(const std::string& isa) {
  DeviceInfo device;
  device.set_kind(DEVICE_KIND_CPU);
  device.set_name(value_after("/proc/cpuinfo", "model name"));
  device.set_isa(isa);
  for (const int32_t cpu : allowed_cpus()) device.add_cpus(cpu);
  const CgroupLimits limits = cgroup_limits();
  if (limits.cores > 0 && limits.cores < device.cpus_size()) device.set_cpu_quota(limits.cores);
  device.set_threads(limits.threads(device.cpus_size()));
  device.set_memory_bytes(std::min(available_memory(), limits.memory_left));
  return device;
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

}  // namespace trireme
