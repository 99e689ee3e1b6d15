// SPDX-License-Identifier: Apache-2.0
// Where a job's workers come from: threads of this process, or the other ranks of the MPI job.
#pragma once

#include <memory>
#include <string>

#include "launch/options.h"
#include "proto/cluster.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

// The coordinator's hold on its workers; destroying it ends them, within a bound.
class Workers {
 public:
  virtual ~Workers() = default;
  virtual Channel& channel() = 0;
  virtual int count() const = 0;
  // The preflight: collects and compares what the ranks state of themselves (`own`: rank 0), and
  // shares the nodes out among them (threads > 0: each gets so many).
  void greet(const Hello& own, int32_t threads);
  const Topology& topology() const { return topology_; }  // ranks ascending

 private:
  Topology topology_;
};

// Forms the job: under a launcher with several ranks its ranks 1.., else tp·pp·dp threads. Returns
// when all have passed the preflight and share their nodes.
std::unique_ptr<Workers> form_workers(const Options& options);

}  // namespace trireme
