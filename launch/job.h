// SPDX-License-Identifier: Apache-2.0
// From options to a running job: forms the workers (threads of this process, or the other ranks of
// the MPI job), places the model on them, loads it, and starts the engine.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/engine.h"
#include "coordinator/validate.h"
#include "launch/options.h"
#include "proto/cluster.pb.h"

namespace trireme {

// The coordinator's side of a job. Constructing it takes the steps up to load(): bootstrap, model
// spec, tokenizer, placement; so bad input is found before a weight is read. Main thread only.
class Job {
 public:
  // Throws Error; nothing is left running then.
  explicit Job(const Options& options);
  ~Job();  // stops the engine, ends the workers
  Job(const Job&) = delete;

  // Loads the weights on all workers, with progress on stderr, and starts the engine.
  // `stop_requested` is polled so that a signal ends a long load. `on_health`: the engine's health
  // listener.
  void load(const std::function<bool()>& stop_requested, std::function<void()> on_health = {});

  const ModelSpec& model() const;
  const Topology& topology() const;
  const Placement& placement() const;
  ServedModel served_model() const;  // its parts live as long as the job
  Engine& engine();                  // which load() starts

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// By --device_map and the flags beside it. Throws what place_model() throws, and kInvalidArgument
// for flags that contradict the map.
Placement choose_placement(const PlacementFlags& flags, const Topology& topology,
                           const ModelSpec& model);

// What the ranks other than 0 do: one worker, until the coordinator ends it. Returns the exit
// status.
int run_worker(const Options& options);

// The last call of main(): ends this process's part in the MPI job, if it is in one. After a rank
// died MPI cannot finalise; rank 0 then ends the whole job with `status` and this does not return.
int finish_process(int status);

}  // namespace trireme
