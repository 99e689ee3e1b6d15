// SPDX-License-Identifier: Apache-2.0
#include "launch/plan.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>

#include "kernels/base/error.h"
#include "launch/explain.h"
#include "launch/job.h"
#include "launch/picture.h"
#include "launch/placement_table.h"
#include "topology/device_map.h"
#include "topology/machine_topology.h"
#include "worker/model/family.h"

namespace trireme {
namespace {

int show(const Options& options, const Topology& topology, const ModelSpec& model,
         const Placement& placement) {
  const PlanFlags& flags = options.plan;
  if (!flags.svg.empty()) {
    write_flag_file(flags.svg, draw_placement(topology, model, placement), "--svg");
  }
  if (flags.json) {
    std::cout << placement_to_json(placement) << '\n';
  } else if (flags.explain) {
    std::cout << explain_placement(topology, model, placement);
  } else {
    std::cout << placement_table(topology, model, placement);
  }
  return 0;
}

}  // namespace

void write_flag_file(const std::string& path, const std::string& text, const std::string& flag) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return;
  throw Error(Code::kInvalidArgument, "cannot write " + flag + " " + path + ": " +
                                          std::strerror(errno) +
                                          "; give a file that can be written");
}

bool plans_for_this_job(const PlanFlags& flags) {
  return flags.topology.empty() || flags.topology == std::vector<std::string>{"probe"};
}

int plan(const Options& options) {
  if (plans_for_this_job(options.plan)) {
    const Job job(options);
    return show(options, job.topology(), job.model(), job.placement());
  }
  const Topology topology = read_topology_files(options.plan.topology);
  const ModelSpec model = read_model_spec(options.placement.model);
  return show(options, topology, model, choose_placement(options.placement, topology, model));
}

}  // namespace trireme
