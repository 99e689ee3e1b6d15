// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>

#include "launch/probe.h"
#include "launch/text_table.h"
#include "topology/machine_health.h"
#include "topology/machine_paths.h"
#include "topology/machine_text.h"
#include "topology/topology.h"

namespace trireme {
namespace {

using Rows = std::vector<std::vector<std::string>>;

constexpr size_t kColumns = 100;
constexpr size_t kMostMatrix = 16;  // GPUs that fit beside each other
constexpr size_t kMostRows = 48;

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[128];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string numa_text(int32_t numa) { return numa < 0 ? "?" : std::to_string(numa); }

std::string or_unknown(const std::string& text) { return text.empty() ? "?" : text; }

std::string shorten(const std::string& text, size_t most) {
  return text.size() <= most ? text : text.substr(0, most - 1) + "~";
}

// A sentence in lines of 100 columns, each behind `indent`.
std::string wrap(const std::string& text, const std::string& first, const std::string& indent) {
  std::string result, line = first;
  bool fresh = true;
  for (const std::string_view word : split_fields(text, ' ')) {
    if (!fresh && line.size() + 1 + word.size() > kColumns) {
      result += line + "\n";
      line = indent;
      fresh = true;
    }
    line += (fresh ? "" : " ") + std::string(word);
    fresh = false;
  }
  return result + line + "\n";
}

std::string rate_text(double bits_per_s) {
  return bits_per_s <= 0 ? "?" : format("%g Gb/s", bits_per_s / 1e9);
}

std::string state_text(Nic::State state) {
  return state == Nic::State::kActive ? "active" : state == Nic::State::kDown ? "down" : "?";
}

std::string pci_text(const PciDevice* device) {
  if (device == nullptr) return "?";
  const PciLink& link = device->link;
  if (link.gigatransfers <= 0 || link.width <= 0) {
    const double bytes = pci_bytes_per_s(link);
    return bytes > 0 ? format("%.1f GB/s", bytes / 1e9) : "?";
  }
  const int width = device->now.width > 0 ? device->now.width : link.width;
  return format("%g GT/s x%d", link.gigatransfers, width);
}

std::string links_text(const Gpu& gpu) {
  if (!gpu.links_known) return "?";
  int32_t count = 0;
  for (const GpuLinks& links : gpu.links) count += links.kind == LinkKind::kC2c ? 0 : links.count;
  const int32_t expected = std::max(count, gpu.links_expected);
  return expected == 0 ? "none" : std::to_string(count) + "/" + std::to_string(expected);
}

std::string or_unknown(const std::optional<double>& value, const char* pattern) {
  return value ? format(pattern, *value) : "?";
}

// "95/700 W"
std::string of_most(const std::optional<double>& value, const std::optional<double>& most,
                    const char* unit) {
  return or_unknown(value, "%.0f") + "/" + or_unknown(most, "%.0f") + " " + unit;
}

std::string health_table(const Machine& machine) {
  std::vector<std::vector<std::string>> rows = {
      {"GPU", "heat", "SM clock", "power", "memory errors", "slowed by"}};
  bool known = false;
  for (size_t i = 0; i < machine.gpus.size(); ++i) {
    const Health& health = machine.gpus[i].health;
    known = known || health.temperature_c || health.sm_clock_mhz || health.power_w;
    std::string reasons;
    for (const std::string& name : throttle_names(health.throttle_reasons.value_or(0))) {
      reasons += (reasons.empty() ? "" : ", ") + name;
    }
    rows.push_back({std::to_string(i), or_unknown(health.temperature_c, "%.0f C"),
                    of_most(health.sm_clock_mhz, health.max_sm_clock_mhz, "MHz"),
                    of_most(health.power_w, health.power_limit_w, "W"),
                    health.ecc_uncorrected ? std::to_string(*health.ecc_uncorrected) : "?",
                    shorten(reasons, 40)});
  }
  return known ? draw_table(rows) : "";
}

const PciDevice* device_of(const Machine& machine, const std::string& id) {
  const int32_t pci = id.empty() ? -1 : machine.find_pci(id);
  return pci < 0 ? nullptr : &machine.pci[static_cast<size_t>(pci)];
}

std::string gpu_table(const Machine& machine) {
  Rows rows = {{"GPU", "name", "memory", "PCI id", "NUMA", "NVLinks", "PCIe"}};
  for (size_t i = 0; i < machine.gpus.size(); ++i) {
    const Gpu& gpu = machine.gpus[i];
    const PciDevice* const pci = device_of(machine, gpu.pci_id);
    rows.push_back({std::to_string(i), shorten(or_unknown(gpu.name), 24),
                    gpu.memory_bytes == 0 ? "?" : format_bytes(gpu.memory_bytes), gpu.pci_id,
                    numa_text(pci == nullptr ? -1 : pci->numa), links_text(gpu), pci_text(pci)});
  }
  // A column that nobody fills is no column.
  for (size_t col = rows[0].size(); col-- > 2;) {
    const bool unknown =
        std::all_of(rows.begin() + 1, rows.end(), [&](const auto& row) { return row[col] == "?"; });
    if (!unknown) continue;
    for (auto& row : rows) row.erase(row.begin() + static_cast<std::ptrdiff_t>(col));
  }
  return draw_table(rows);
}

// Rows: GPUs, then the NICs that are hardware; columns: GPUs.
std::string matrix(const Machine& machine) {
  const size_t count = machine.gpus.size();
  if (count < 2 && machine.nics.empty()) return "";
  if (count > kMostMatrix) {
    return "  More than " + std::to_string(kMostMatrix) +
           " GPUs: their ways are below, by class.\n";
  }
  const size_t gap = count > 12 ? 1 : 2;
  const auto line = [&](const std::string& name, const std::vector<std::string>& cells) {
    std::string text = "  " + name + std::string(name.size() < 9 ? 9 - name.size() : 1, ' ');
    for (const std::string& cell : cells) {
      text +=
          cell + std::string(cell.size() < 4 ? 4 - cell.size() : 0, ' ') + std::string(gap, ' ');
    }
    return text.substr(0, text.find_last_not_of(' ') + 1) + "\n";
  };
  std::vector<std::string> cells;
  for (size_t i = 0; i < count; ++i) cells.push_back(std::to_string(i));
  std::string text = line("GPU", cells);
  for (size_t a = 0; a < count; ++a) {
    cells.clear();
    for (size_t b = 0; b < count; ++b) {
      cells.push_back(a == b ? "X" : path_name(gpu_path(machine, a, b)));
    }
    text += line("GPU " + std::to_string(a), cells);
  }
  size_t shown = 0;
  for (const Nic& nic : machine.nics) {
    if (nic.is_virtual || ++shown > kMostRows) continue;
    cells.clear();
    for (size_t gpu = 0; gpu < count; ++gpu)
      cells.push_back(path_name(nic_path(machine, gpu, nic)));
    text += line(shorten(nic.name, 16), cells);
  }
  return text;
}

std::string link_table(const Machine& machine) {
  struct Kind {
    int pairs = 0;
    double least = 0, most = 0;
    std::string example;
  };
  std::map<std::pair<int, std::string>, Kind> kinds;
  for (size_t a = 0; a < machine.gpus.size(); ++a) {
    for (size_t b = a + 1; b < machine.gpus.size(); ++b) {
      const DevicePath path = gpu_path(machine, a, b);
      Kind& kind = kinds[{path.link_class, path_name(path)}];
      if (++kind.pairs == 1) kind.least = kind.most = path.bytes_per_s;
      kind.least = std::min(kind.least, path.bytes_per_s);
      kind.most = std::max(kind.most, path.bytes_per_s);
      if (kind.pairs <= 6) {
        kind.example += (kind.pairs > 1 ? " " : "") + std::to_string(a) + "-" + std::to_string(b);
      } else if (kind.pairs == 7) {
        kind.example += " …";
      }
    }
  }
  if (kinds.empty()) return "";
  Rows rows = {{"class", "pairs", "GB/s nominal, one way", "GPUs"}};
  for (const auto& [key, kind] : kinds) {
    const std::string speed = kind.least == kind.most
                                  ? format("%.1f", kind.least / 1e9)
                                  : format("%.1f to %.1f", kind.least / 1e9, kind.most / 1e9);
    rows.push_back({key.second, std::to_string(kind.pairs), speed, kind.example});
  }
  return draw_table(rows);
}

std::string nic_table(const Machine& machine) {
  Rows rows = {{"NIC", "port", "state", "rate", "layer", "PCI id", "NUMA", "GDR", "next to GPU"}};
  std::vector<std::string> near(machine.nics.size());
  for (size_t gpu = 0; gpu < machine.gpus.size(); ++gpu) {
    for (const size_t nic : nearest_nics(machine, gpu)) {
      near[nic] += (near[nic].empty() ? "" : " ") + std::to_string(gpu);
    }
  }
  size_t virtual_nics = 0;
  for (size_t i = 0; i < machine.nics.size(); ++i) {
    const Nic& nic = machine.nics[i];
    virtual_nics += nic.is_virtual ? 1 : 0;
    if (nic.is_virtual || rows.size() > kMostRows) continue;
    rows.push_back({shorten(nic.name, 16), std::to_string(nic.port), state_text(nic.state),
                    rate_text(nic.bits_per_s), or_unknown(nic.link_layer), or_unknown(nic.pci_id),
                    numa_text(nic.numa),
                    !nic.gdr   ? "?"
                    : *nic.gdr ? "yes"
                               : "no",
                    near[i].empty() ? "-" : near[i]});
  }
  std::string text = rows.size() > 1 ? draw_table(rows) : "";
  if (virtual_nics > 0) text += "  " + std::to_string(virtual_nics) + " virtual ones left out\n";
  return text;
}

std::string notes_of(const Machine& machine) {
  std::string text;
  for (size_t i = 0; i < machine.gpus.size(); ++i) {
    const Gpu& gpu = machine.gpus[i];
    const std::string name = "  GPU " + std::to_string(i) + ": ";
    if (!gpu.degraded.empty()) text += wrap("degraded: " + gpu.degraded, name, "      ");
    for (const std::string& note : gpu.notes) text += wrap(note, name, "      ");
    for (const std::string& note : health_notes(gpu.health)) {
      if (gpu.degraded.find(note) == note.npos) text += wrap(note, name, "      ");
    }
  }
  for (const Nic& nic : machine.nics) {
    for (const std::string& note : nic.notes) {
      if (!nic.is_virtual) text += wrap(note, "  " + shorten(nic.name, 16) + ": ", "      ");
    }
  }
  for (const std::string& note : machine.notes) text += wrap(note, "  ", "      ");
  return text;
}

std::string title(const Machine& machine) {
  size_t cores = 0;
  uint64_t memory = 0;
  for (const NumaNode& node : machine.numa) {
    cores += node.cores.size();
    memory += node.memory_bytes;
  }
  std::string text = machine.host + ":";
  if (!machine.numa.empty()) text += " " + std::to_string(machine.numa.size()) + " NUMA nodes,";
  if (cores > 0) text += " " + std::to_string(cores) + " cores,";
  if (memory > 0) text += " " + format_bytes(memory) + ",";
  if (!machine.numa.empty() && !machine.numa[0].cpu_vendor.empty()) {
    const NumaNode& node = machine.numa[0];
    text += " " + node.cpu_vendor + " family " + std::to_string(node.cpu_family) + " model " +
            std::to_string(node.cpu_model) + ",";
  }
  text += " " + std::to_string(machine.gpus.size()) + " GPUs";
  const std::string source = std::filesystem::path(machine.source).filename();
  return wrap(text + " (" + source + ")", "", "  ");
}

std::string section(const std::string& heading, const std::string& body) {
  return body.empty() ? "" : "\n" + heading + "\n" + body;
}

}  // namespace

std::string machine_tables(const Machine& machine) {
  std::string text = title(machine);
  if (!machine.gpus.empty()) text += section("Devices", gpu_table(machine));
  if (!machine.gpus.empty()) {
    text += section("Ways between devices", matrix(machine));
    text +=
        "  NV# XG# so many NVLinks, xGMI links · PIX one PCIe switch · PXB several · PHB the "
        "CPU's\n"
        "  host bridge (NCCL's files: or NODE) · NODE one NUMA node · SYS between NUMA nodes\n";
  }
  text += section("Links", link_table(machine));
  text += section("Network (GDR: a NIC reaches a GPU's memory)", nic_table(machine));
  text += section("Heat, clocks and power", health_table(machine));
  text += section("Marked", notes_of(machine));
  std::string missing;
  for (const std::string& what : machine.missing) missing += wrap(what, "  ", "      ");
  return text + section("Missing", missing) + "\n";
}

}  // namespace trireme
