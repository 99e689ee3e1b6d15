// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>

#include "kernels/base/error.h"
#include "topology/machine_text.h"
#include "topology/nvml_profile.h"

namespace trireme {
namespace {

constexpr std::array<std::string_view, 18> kCounts = {
    "Single",   "Two",      "Three",   "Four",    "Five",      "Six",
    "Seven",    "Eight",    "Nine",    "Ten",     "Eleven",    "Twelve",
    "Thirteen", "Fourteen", "Fifteen", "Sixteen", "Seventeen", "Eighteen"};
// From near to far; two GPUs that are this near share the level and all above.
constexpr std::array<std::string_view, 6> kLevels = {"P2PLinkSameBoard",   "P2PLinkSingleSwitch",
                                                     "P2PLinkMultiSwitch", "P2PLinkHostBridge",
                                                     "P2PLinkSameCPU",     "P2PLinkCrossCPU"};
constexpr size_t kSingleSwitch = 1, kMultiSwitch = 2, kHostBridge = 3, kSameCpu = 4;

struct Entry {
  size_t from, to;
  int32_t links;  // 0: a way over PCIe, of this level
  size_t level;
  int line;
};

struct Table {
  std::string name;
  size_t gpus = 0;
  std::vector<Entry> entries;
};

// Which GPUs are together at a level or nearer, by the first of them.
std::vector<size_t> groups(const Table& table, size_t level) {
  std::vector<size_t> root(table.gpus);
  std::iota(root.begin(), root.end(), size_t{0});
  const auto find = [&](size_t i) {
    while (root[i] != i) i = root[i] = root[root[i]];
    return i;
  };
  for (const Entry& entry : table.entries) {
    if (entry.links > 0 || entry.level > level) continue;
    const size_t a = find(entry.from), b = find(entry.to);
    root[std::max(a, b)] = std::min(a, b);
  }
  for (size_t i = 0; i < root.size(); ++i) root[i] = find(i);
  return root;
}

std::string id_of(size_t domain, size_t number) {
  char id[32];
  std::snprintf(id, sizeof id, "%04zx:%02zx:00.0", domain, number);
  return id;
}

// The table gives no PCI ids: domain 0 has the GPUs, domains 1 and 2 their switches.
Machine make_machine(const Table& table, const std::string& source) {
  Machine machine;
  machine.host = table.name;
  machine.source = source;
  const auto numa = groups(table, kSameCpu), bridge = groups(table, kHostBridge);
  const auto above = groups(table, kMultiSwitch), beside = groups(table, kSingleSwitch);
  for (size_t i = 0; i < table.gpus; ++i) {
    if (numa[i] == i) machine.numa.emplace_back().id = static_cast<int32_t>(i);
  }
  const auto add = [&](const std::string& id, uint32_t device_class, int32_t parent, size_t gpu) {
    PciDevice device;
    device.id = id;
    device.device_class = device_class;
    device.parent = parent;
    device.root = "bridge " + std::to_string(bridge[gpu]);
    device.numa = static_cast<int32_t>(numa[gpu]);
    machine.pci.push_back(device);
    return static_cast<int32_t>(machine.pci.size() - 1);
  };
  const auto is_shared = [&](const std::vector<size_t>& group, size_t gpu) {
    return std::count(group.begin(), group.end(), group[gpu]) > 1;
  };
  for (size_t i = 0; i < table.gpus; ++i) {
    int32_t parent = -1;
    for (const auto& [group, domain] :
         {std::pair(&above, size_t{2}), std::pair(&beside, size_t{1})}) {
      if (!is_shared(*group, i)) continue;
      // Where both levels hold the same GPUs there is one switch.
      if (domain == 2 && std::count(above.begin(), above.end(), above[i]) ==
                             std::count(beside.begin(), beside.end(), beside[i])) {
        continue;
      }
      const std::string id = id_of(domain, (*group)[i]);
      const int32_t known = machine.find_pci(id);
      parent = known >= 0 ? known : add(id, 0x060400, parent, i);
    }
    add(id_of(0, i), 0x030200, parent, i);
    Gpu& gpu = machine.gpus.emplace_back();
    gpu.index = static_cast<int32_t>(i);
    gpu.pci_id = id_of(0, i);
    gpu.links_known = true;
  }
  for (const Entry& entry : table.entries) {
    if (entry.links == 0) continue;
    machine.gpus[entry.from].links.push_back(
        {LinkKind::kNvLink, Remote::kGpu, id_of(0, entry.to), entry.links, 0});
  }
  complete_machine(machine);
  return machine;
}

class TableReader {
 public:
  explicit TableReader(const std::string& source) : source_(source) {}

  std::vector<Machine> read(std::string_view text) {
    for (const std::string_view line : split_fields(text, '\n')) {
      ++line_;
      read_line(trim(line));
    }
    std::vector<Machine> machines;
    for (const Table& table : tables_) {
      if (!table.entries.empty()) machines.push_back(make_machine(table, source_));
    }
    if (machines.empty()) refuse("no node.AddLink(from, to, kind) until here, its end");
    return machines;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source_ + ": line " +
                                            std::to_string(line_) + ": " + what);
  }

  void read_line(std::string_view line) {
    constexpr std::string_view kNew = "func New", kGpu = "NewTestGPU(", kLink = "node.AddLink(";
    if (line.starts_with(kNew) && line.find("Node()") != line.npos) {
      if (tables_.size() >= 1024) refuse("too many tables before it");
      tables_.push_back(
          {std::string(line.substr(kNew.size(), line.find("Node()") - kNew.size())), 0, {}});
    } else if (line.starts_with(kGpu) && !tables_.empty()) {
      if (++tables_.back().gpus > kMaxGpus) refuse("more than 256 GPUs in one table");
    } else if (line.starts_with(kLink)) {
      if (tables_.empty()) refuse("a link outside of a function New…Node()");
      read_link(line.substr(kLink.size(), line.find(')') - kLink.size()));
    }
  }

  void read_link(std::string_view arguments) {
    const auto fields = split_fields(arguments, ',');
    if (fields.size() != 3)
      refuse("a link of " + std::to_string(fields.size()) + " fields, needed are 3");
    Table& table = tables_.back();
    if (table.entries.size() > kMaxGpus * kMaxGpus) refuse("too many links before it");
    const auto from = read_integer(trim(fields[0])), to = read_integer(trim(fields[1]));
    const auto last = static_cast<int64_t>(table.gpus);
    if (!from || !to || *from < 0 || *to < 0 || *from >= last || *to >= last) {
      refuse("a link between \"" + std::string(trim(fields[0])) + "\" and \"" +
             std::string(trim(fields[1])) + "\", the table has GPUs 0 to " +
             std::to_string(last - 1));
    }
    if (*from == *to) refuse("a link of a GPU to itself");
    std::string_view kind = trim(fields[2]);
    if (kind.starts_with("nvml.")) kind.remove_prefix(5);
    Entry entry{static_cast<size_t>(*from), static_cast<size_t>(*to), 0, 0, line_};
    const auto count = std::find_if(kCounts.begin(), kCounts.end(), [&](std::string_view name) {
      return kind == std::string(name) + "NVLINKLink" || kind == std::string(name) + "NVLINKLinks";
    });
    const auto level = std::find(kLevels.begin(), kLevels.end(), kind);
    if (count != kCounts.end()) {
      entry.links = static_cast<int32_t>(count - kCounts.begin()) + 1;
    } else if (level != kLevels.end()) {
      entry.level = static_cast<size_t>(level - kLevels.begin());
    } else {
      refuse("a link of the kind \"" + std::string(kind.substr(0, 40)) + "\", which is not known");
    }
    table.entries.push_back(entry);
  }

  const std::string source_;
  int line_ = 0;
  std::vector<Table> tables_;
};

}  // namespace

std::vector<Machine> read_link_table(const std::string& text, const std::string& source) {
  return TableReader(source).read(text);
}

}  // namespace trireme
