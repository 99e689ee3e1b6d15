// SPDX-License-Identifier: Apache-2.0
#include "topology/probe_machine.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "topology/machine_text.h"
#include "topology/probe.h"

namespace trireme {
namespace {

// NVRM: Xid (PCI:0000:3b:00): 79, pid=…
void read_xid(std::string_view line, Machine& machine) {
  constexpr std::string_view kMark = "NVRM: Xid (PCI:";
  const size_t mark = line.find(kMark);
  if (mark == line.npos) return;
  const std::string_view rest = line.substr(mark + kMark.size());
  const size_t close = rest.find("): ");
  if (close == rest.npos) return;
  const std::string_view number = rest.substr(close + 3);
  const auto xid = read_integer(number.substr(0, number.find_first_not_of("0123456789")));
  std::string id(rest.substr(0, close));
  if (id.find('.') == id.npos) id += ".0";
  const int32_t gpu = machine.find_gpu(read_pci_id(id));
  if (gpu < 0 || !xid || *xid < 1 || *xid > 10000) return;
  std::vector<int32_t>& xids = machine.gpus[static_cast<size_t>(gpu)].health.xids;
  const auto value = static_cast<int32_t>(*xid);
  constexpr size_t kMost = 16;
  if (xids.size() < kMost && std::find(xids.begin(), xids.end(), value) == xids.end()) {
    xids.push_back(value);
  }
}

}  // namespace

void probe_kernel_log(const std::string& path, Machine& machine) {
  if (machine.gpus.empty()) return;
  const int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) {
    machine.missing.push_back("XIDs of the past: " + path + ": " + std::strerror(errno));
    return;
  }
  // /dev/kmsg gives a record a read, a file whatever fits; EAGAIN and EOF end both.
  constexpr size_t kMostBytes = 16u << 20;
  std::string text;
  char piece[8192];
  while (text.size() < kMostBytes) {
    const ssize_t count = read(file, piece, sizeof piece);
    if (count < 0 && errno == EPIPE) continue;  // records were overwritten meanwhile
    if (count <= 0) break;
    text.append(piece, static_cast<size_t>(count));
  }
  close(file);
  for (const std::string_view line : split_fields(text, '\n')) read_xid(line, machine);
}

Machine probe_machine(const ProbeSources& sources) {
  Machine machine;
  machine.host = host_name();
  machine.source = "this machine";
  probe_sysfs(sources.root, machine);
  probe_nvml(sources.nvml_library, machine);
  probe_kernel_log(sources.kernel_log, machine);
  keep_switches(machine);
  complete_machine(machine);
  return machine;
}

}  // namespace trireme
