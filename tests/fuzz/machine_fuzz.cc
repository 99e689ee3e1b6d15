// SPDX-License-Identifier: Apache-2.0
// What a machine is: files of NCCL, hwloc and others (the kind is told by the content), and a
// Topology as JSON.
#include <cmath>

#include "tests/fuzz/fuzz.h"
#include "topology/machine_file.h"
#include "topology/machine_paths.h"
#include "topology/machine_text.h"
#include "topology/machine_topology.h"
#include "topology/nccl_xml.h"
#include "topology/topology.h"

namespace trireme::fuzz {
namespace {

void check_machine(const Machine& machine) {
  CHECK(machine.gpus.size() <= kMaxGpus && machine.nics.size() <= kMaxNics, "sizes are bounded");
  for (size_t i = 0; i < machine.pci.size(); ++i) {
    CHECK(machine.pci[i].parent < static_cast<int32_t>(i), "what is above comes first: no cycles");
    const double speed = pci_bytes_per_s(machine.pci[i].link);
    CHECK(speed >= 0 && speed < 1e12, "a speed of PCIe");
  }
  for (const Gpu& gpu : machine.gpus) {
    int32_t links = 0;
    for (const GpuLinks& some : gpu.links) {
      CHECK(some.count > 0 || some.kind == LinkKind::kC2c, "links that are there");
      CHECK(some.target != gpu.pci_id, "no link to itself");
      if (some.kind == LinkKind::kNvLink) links += some.count;
    }
    const int32_t most = max_nvlinks(machine, gpu);
    CHECK(links <= kMaxGpuNvLinks * 2 && (most < 0 || links <= most), "as many links as a GPU has");
  }
  for (const Nic& nic : machine.nics) {
    CHECK(std::isfinite(nic.bits_per_s) && nic.bits_per_s >= 0, "a rate");
  }
}

}  // namespace

void fuzz_machine_file(std::string_view input) {
  std::vector<Machine> machines;
  if (!accepts([&] { machines = read_machines(std::string(input), "file", "host"); })) return;
  Topology topology;
  // Names that two hosts share, more notes than a node has: the topology's own checks may refuse.
  const bool taken = accepts([&] {
    topology = topology_of(machines);
    validate_topology(topology);
  });
  for (const Machine& machine : machines) {
    const bool whole = input.find("complete") != input.npos;
    if (!whole) check_machine(machine);
    const std::string written = write_nccl_xml(machine, true);
    std::vector<Machine> again;
    if (!accepts([&] { again = read_machines(written, "written", "host"); })) continue;
    CHECK(again.size() == 1 && again[0].gpus.size() == machine.gpus.size(),
          "written, it is the same");
    CHECK(whole || again[0].nics.size() == machine.nics.size(), "written, it has its NICs");
  }
  if (!taken) return;
  const std::string json = topology_to_json(topology);
  CHECK(topology_to_json(topology_from_json(json)) == json, "what probe --json writes can be read");
}

void fuzz_topology_json(std::string_view input) {
  Topology topology;
  if (!accepts([&] { topology = topology_from_json(std::string(input)); })) return;
  const std::string json = topology_to_json(topology);
  CHECK(topology_to_json(topology_from_json(json)) == json, "what is written can be read");
  (void)accepts([&] { join_machines(topology); });
}

}  // namespace trireme::fuzz
