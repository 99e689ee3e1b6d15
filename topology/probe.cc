// SPDX-License-Identifier: Apache-2.0
#include "topology/probe.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

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

// A cgroup file that holds one number; "max" or an absent file is no limit.
uint64_t cgroup_number(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : std::numeric_limits<uint64_t>::max();
}

uint64_t available_memory() {
  const std::string text = value_after("/proc/meminfo", "MemAvailable");
  uint64_t bytes = text.empty() ? 0 : std::strtoull(text.c_str(), nullptr, 10) * 1024;
  const uint64_t limit = cgroup_number("/sys/fs/cgroup/memory.max");
  const uint64_t used = cgroup_number("/sys/fs/cgroup/memory.current");
  if (limit != std::numeric_limits<uint64_t>::max() && used < limit) {
    bytes = std::min(bytes, limit - used);
  }
  return bytes;
}

// cgroup v2 "quota period" in microseconds: whole cores that may be used at once, at least one.
int cgroup_cores(int cores) {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  int64_t period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return cores;
  const int64_t allowed = std::strtoll(quota.c_str(), nullptr, 10) / period;
  return static_cast<int>(std::clamp<int64_t>(allowed, 1, cores));
}

}  // namespace

DeviceInfo probe_cpu(const std::string& isa) {
  DeviceInfo device;
  device.set_kind(DEVICE_KIND_CPU);
  device.set_name(value_after("/proc/cpuinfo", "model name"));
  device.set_isa(isa);
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_SET(0, &set);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) device.add_cpus(cpu);
  }
  device.set_threads(cgroup_cores(device.cpus_size()));
  device.set_memory_bytes(available_memory());
  return device;
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

}  // namespace trireme
