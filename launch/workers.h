// SPDX-License-Identifier: Apache-2.0
// Where a job's workers come from: threads of this process, or the other ranks of the MPI job.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launch/options.h"
#include "proto/cluster.pb.h"
#include "topology/machine.h"
#include "topology/nccl_settings.h"
#include "worker/comm/channel.h"

namespace trireme {

// The coordinator's hold on its workers; destroying it ends them, within a bound.
class Workers {
 public:
  virtual ~Workers() = default;
  virtual Channel& channel() = 0;
  virtual int count() const = 0;
  // Where the control connections come in; 0 where there are none.
  virtual int control_port() const { return 0; }
  // Workers are threads of this process.
  bool in_one_process() const { return control_port() == 0; }
  // By rank; empty: all are here.
  virtual std::vector<std::string> hosts() const { return {}; }
  // The preflight: collects and compares what the ranks state of themselves (`own`: rank 0), shares
  // the nodes out among them, and measures their links; then, where a placement is to be planned or
  // the machines shown, their devices.
  void greet(const Hello& own, const Options& options);
  const Topology& topology() const { return topology_; }  // ranks ascending
  // The nodes as their ranks probed them, one for each host.
  const std::vector<Machine>& machines() const { return machines_; }
  // By rank: what NCCL keeps for as long as the job lives, since it was used to measure; else
  // empty.
  const std::map<int, NcclSettings>& nccl_ways() const { return nccl_ways_; }

 private:
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  Topology topology_;
  std::vector<Machine> machines_;
  std::map<int, NcclSettings> nccl_ways_;
};

// Forms the job: under a launcher with several ranks its ranks 1.., else tp·pp·dp threads. Returns
// when all have passed the preflight and share their nodes.
std::unique_ptr<Workers> form_workers(const Options& options);

}  // namespace trireme
