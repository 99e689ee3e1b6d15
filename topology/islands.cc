// SPDX-License-Identifier: Apache-2.0
#include "topology/islands.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <string>

#include "topology/machine_paths.h"

namespace trireme {
namespace {

using Group = std::vector<size_t>;
using Paths = std::vector<std::vector<DevicePath>>;  // of every pair

Paths all_paths(const Machine& machine) {
  const size_t count = machine.gpus.size();
  Paths paths(count, std::vector<DevicePath>(count));
  for (size_t a = 0; a < count; ++a) {
    for (size_t b = 0; b < count; ++b) {
      if (a != b) paths[a][b] = gpu_path(machine, a, b);
    }
  }
  return paths;
}

// Components of `members` under a relation, of two or more.
std::vector<Group> components(const Group& members,
                              const std::function<bool(size_t, size_t)>& joined) {
  std::vector<Group> groups;
  std::vector<size_t> left = members;
  while (!left.empty()) {
    Group group = {left.front()};
    left.erase(left.begin());
    for (size_t i = 0; i < group.size(); ++i) {
      const auto far = std::stable_partition(
          left.begin(), left.end(), [&](size_t other) { return !joined(group[i], other); });
      group.insert(group.end(), far, left.end());
      left.erase(far, left.end());
    }
    if (group.size() >= 2) groups.push_back(group);
  }
  return groups;
}

double speed_between(const Paths& paths, const Group& a, const Group& b) {
  double sum = 0;
  for (const size_t one : a) {
    for (const size_t other : b) sum += paths[one][other].bytes_per_s;
  }
  return sum / static_cast<double>(a.size() * b.size());
}

// Joins the best pairs, then the best pairs of those, and so on.
Group by_nearness(const Paths& paths, const Group& members) {
  std::vector<Group> parts;
  for (const size_t member : members) parts.push_back({member});
  while (parts.size() > 1) {
    std::vector<Group> joined;
    while (!parts.empty()) {
      Group first = std::move(parts.front());
      parts.erase(parts.begin());
      // Of equal ones the next in line, which is the next by number.
      const auto best =
          std::max_element(parts.begin(), parts.end(), [&](const auto& a, const auto& b) {
            return speed_between(paths, first, a) < speed_between(paths, first, b);
          });
      if (best != parts.end()) {
        first.insert(first.end(), best->begin(), best->end());
        parts.erase(best);
      }
      joined.push_back(std::move(first));
    }
    parts = std::move(joined);
  }
  return parts.front();
}

void add_row(AllReduceTable& table, int32_t tp, double alpha_us, double gigabytes) {
  AllReduceRow& row = *table.add_rows();
  row.set_tp(tp);
  row.set_alpha_s(1e-6 * alpha_us);
  row.set_bus_bytes_per_s(1e9 * gigabytes);
}

struct Nominal {
  const char* name;
  const char* link;
  double alpha_us[3], gigabytes[3];  // for 2, 4 and 8
};

// Measured on one box each and fitted (a line through time over bytes); PCIe by generation.
constexpr Nominal kNvs2{"nvl2", "NVLink 2", {6, 9, 16}, {120, 110, 100}};
constexpr Nominal kNvs3{"nvs3", "NVLink 3 through NVSwitch", {5.3, 6, 7}, {161, 182, 190}};
constexpr Nominal kNvs4{"nvs4", "NVLink 4 through NVSwitch", {4.5, 5, 6}, {260, 305, 374}};
constexpr Nominal kNvs5{"nvs5", "NVLink 5 through NVSwitch", {5, 5.5, 8}, {475, 555, 585}};
constexpr Nominal kPcie3{"pcie3", "PCIe 3", {15, 20, 30}, {8, 7, 4}};
constexpr Nominal kPcie4{
    "pcie4", "PCIe 4 without peer-to-peer switch", {7, 12, 23}, {18.7, 5.1, 1.6}};
constexpr Nominal kPcie4Switch{"pcie4sw", "PCIe 4 under one switch", {7, 14, 27}, {20, 16, 12}};
constexpr Nominal kPcie5{"pcie5", "PCIe 5", {6.8, 13.6, 27}, {35, 24.5, 22}};

AllReduceTable make_table(const Nominal& nominal) {
  AllReduceTable table;
  table.set_name(nominal.name);
  table.set_link(nominal.link);
  for (int i = 0; i < 3; ++i) add_row(table, 2 << i, nominal.alpha_us[i], nominal.gigabytes[i]);
  return table;
}

// Every GPU has `links` to each of the others: rings through all of them add up.
AllReduceTable mesh_table(const DevicePath& path, size_t size) {
  constexpr double kReached = 0.7;
  const auto gigabytes = std::lround(path.bytes_per_s / 1e9);
  AllReduceTable table;
  table.set_name((path.xgmi ? "xgmi-mesh-" : "nvlink-mesh-") + std::to_string(gigabytes) + "-" +
                 std::to_string(size));
  table.set_link(std::to_string(path.links) + (path.xgmi ? " xGMI links" : " NVLinks") +
                 " from each GPU to each");
  constexpr double kAlphas[] = {6, 9, 16};
  for (int i = 0; i < 3 && static_cast<size_t>(2 << i) <= size; ++i) {
    add_row(table, 2 << i, kAlphas[i],
            kReached * static_cast<double>(gigabytes) * static_cast<double>((2 << i) - 1));
  }
  return table;
}

}  // namespace

std::vector<std::vector<size_t>> find_islands(const Machine& machine) {
  const Paths paths = all_paths(machine);
  Group all(machine.gpus.size());
  std::iota(all.begin(), all.end(), size_t{0});
  std::vector<Group> islands =
      components(all, [&](size_t a, size_t b) { return paths[a][b].link_class == LINK_CLASS_NVL; });
  // Those that never had fast links: PCIe joins what is alike.
  Group rest;
  for (const size_t gpu : all) {
    const bool placed = std::any_of(islands.begin(), islands.end(), [&](const Group& island) {
      return std::find(island.begin(), island.end(), gpu) != island.end();
    });
    if (!placed && machine.gpus[gpu].links_expected == 0) rest.push_back(gpu);
  }
  for (const LinkClass reach : {LINK_CLASS_PXB, LINK_CLASS_NODE, LINK_CLASS_SYS}) {
    const auto found = components(rest, [&](size_t a, size_t b) {
      return paths[a][b].link_class <= reach && machine.gpus[a].name == machine.gpus[b].name;
    });
    if (found.empty()) continue;
    islands.insert(islands.end(), found.begin(), found.end());
    break;
  }
  for (Group& island : islands) island = by_nearness(paths, island);
  return islands;
}

LinkSpeed island_link(const Machine& machine, const std::vector<size_t>& island) {
  DevicePath least;
  for (size_t i = 0; i < island.size(); ++i) {
    for (size_t j = i + 1; j < island.size(); ++j) {
      const DevicePath path = gpu_path(machine, island[i], island[j]);
      // In a mesh that joins not all pairs, those that it joins count.
      const bool first = least.link_class == LINK_CLASS_UNSPECIFIED;
      const bool better_kind =
          path.link_class == LINK_CLASS_NVL && least.link_class != LINK_CLASS_NVL;
      const bool same_kind =
          (path.link_class == LINK_CLASS_NVL) == (least.link_class == LINK_CLASS_NVL);
      const bool weaker =
          path.bytes_per_s < least.bytes_per_s ||
          (path.bytes_per_s == least.bytes_per_s && path.link_class > least.link_class);
      if (first || better_kind || (same_kind && weaker)) least = path;
    }
  }
  return link_speed(least);
}

AllReduceTable nominal_table(const Machine& machine, const std::vector<size_t>& island) {
  const Gpu& gpu = machine.gpus[island.front()];
  const DevicePath near = gpu_path(machine, island[0], island[1]);
  if (near.link_class == LINK_CLASS_NVL) {
    const bool switched =
        std::any_of(gpu.links.begin(), gpu.links.end(),
                    [](const GpuLinks& links) { return links.remote == Remote::kSwitch; });
    if (!switched && (gpu.compute_capability >= 80 || near.xgmi))
      return mesh_table(near, island.size());
    if (gpu.compute_capability >= 100) return make_table(kNvs5);
    if (gpu.compute_capability >= 90) return make_table(kNvs4);
    return make_table(gpu.compute_capability >= 80 ? kNvs3 : kNvs2);
  }
  const LinkSpeed link = island_link(machine, island);
  constexpr double kGeneration4 = 20e9, kGeneration5 = 40e9;
  if (link.bandwidth_bytes_per_s() >= kGeneration5) return make_table(kPcie5);
  const double own = near.bytes_per_s;
  if (own < kGeneration4) return make_table(kPcie3);
  return make_table(link.link_class() <= LINK_CLASS_PXB ? kPcie4Switch : kPcie4);
}

}  // namespace trireme
