// SPDX-License-Identifier: Apache-2.0
#include "topology/cgroup.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string_view>

namespace trireme {
namespace {

// Version 1 says "no limit" by a number near 2^63.
constexpr uint64_t kNoLimit = uint64_t{1} << 60;

// The first word of a file as a number; nothing for an absent file, and for "max".
std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value && std::isfinite(value)) return value;
  return std::nullopt;
}

// Bytes of the page cache, which gives way: under names of version 2, or of version 1 with all
// below.
double cache_bytes(const std::string& folder) {
  std::ifstream file(folder + "memory.stat");
  std::string name;
  double value = 0, own = 0, with_all_below = 0;
  while (file >> name >> value) {
    if (name == "inactive_file" || name == "active_file") own += value;
    if (name == "total_inactive_file" || name == "total_active_file") with_all_below += value;
  }
  return std::max(own, with_all_below);
}

void take_cores(std::optional<double> quota, std::optional<double> period, CgroupLimits& limits) {
  if (!quota || !period || *quota <= 0 || *period <= 0) return;  // version 1: -1 is no quota
  const double cores = *quota / *period;
  if (limits.cores == 0 || cores < limits.cores) limits.cores = cores;
}

void take_memory(std::optional<double> limit, std::optional<double> used, const std::string& folder,
                 CgroupLimits& limits) {
  if (!limit || !used || *limit < 0 || *limit >= double(kNoLimit)) return;
  const double left = *limit - std::max(*used - cache_bytes(folder), 0.0);
  limits.memory_left = std::min(limits.memory_left, static_cast<uint64_t>(std::max(left, 0.0)));
}

void look_at_v2(const std::string& folder, CgroupLimits& limits) {
  std::ifstream file(folder + "cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period) take_cores(quota, period, limits);
  take_memory(number_in(folder + "memory.max"), number_in(folder + "memory.current"), folder,
              limits);
}

void look_at_v1(const std::string& folder, CgroupLimits& limits) {
  take_cores(number_in(folder + "cpu.cfs_quota_us"), number_in(folder + "cpu.cfs_period_us"),
             limits);
  take_memory(number_in(folder + "memory.limit_in_bytes"),
              number_in(folder + "memory.usage_in_bytes"), folder, limits);
}

// Calls look for the group at `path` below `top`, and for each above it. In a container the path
// may be that of the host, of which there is nothing here but the top.
void climb(const std::string& top, std::string path,
           const std::function<void(const std::string& folder)>& look) {
  if (path.find("..") != std::string::npos) path.clear();
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    look(top + path + "/");
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

bool has(const std::string& controllers, std::string_view wanted) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == wanted) return true;
  }
  return false;
}

}  // namespace

int CgroupLimits::threads(int cpus) const {
  return cores > 0 && cores < cpus ? std::max(1, static_cast<int>(cores)) : cpus;
}

CgroupLimits cgroup_limits(const std::string& root) {
  CgroupLimits limits;
  const std::string mounts = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      climb(mounts, path, [&](const std::string& folder) { look_at_v2(folder, limits); });
      continue;
    }
    for (const char* const wanted : {"cpu", "memory"}) {
      if (!has(controllers, wanted)) continue;
      climb(mounts + "/" + wanted, path,  // a link where several are mounted together
            [&](const std::string& folder) { look_at_v1(folder, limits); });
    }
  }
  return limits;
}

}  // namespace trireme
