// SPDX-License-Identifier: Apache-2.0
#include "launch/probe_options.h"

#include <CLI/CLI.hpp>

namespace trireme {
namespace {

constexpr const char* kExamples = R"(Examples:
  trireme probe                                     this machine
  mpirun -n 9 --map-by node trireme probe --json    every node of the job, as a Topology
  trireme probe --topology nccl_topo.xml            a machine that one does not have)";

}  // namespace

CLI::App* add_probe_flags(CLI::App& app, ProbeFlags& flags) {
  CLI::App* const probe = app.add_subcommand("probe", "Shows the machines: devices, links, NICs");
  probe
      ->add_option("--topology", flags.topology,
                   "describe what files say instead: a Topology (probe --json), NCCL's or hwloc's "
                   "XML, output of ibnetdiscover, topograph's YAML, an nvml-mock profile")
      ->take_all();
  probe->add_flag("--json", flags.json, "as a Topology, which plan --topology reads");
  probe->add_option("--nccl_xml", flags.nccl_xml, "write the one machine for NCCL_TOPO_FILE");
  // For tests, and for drivers that lie elsewhere.
  probe->add_option("--nvml_library", flags.sources.nvml_library, "name or path of NVML")
      ->capture_default_str();
  probe->add_option("--sysfs_root", flags.sources.root, "folder that has sys and proc")
      ->capture_default_str();
  probe->footer(kExamples);
  return probe;
}

}  // namespace trireme
