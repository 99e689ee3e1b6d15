// SPDX-License-Identifier: Apache-2.0
// Measured step times beside what the plan's cost model says of the same micro-batches: which stage
// is off by more than 15 %, which of its ranks, and the likely cause.
//
// Ranks tell with their heartbeats how long they computed, and exchanged within their group, for
// all micro-batches up to one. What those were predicted to take is summed here as they are sent,
// so load and batch size do not matter. A window ends when the slowest stage of a replica has
// worked for kWindow; a stage is said to be off when two windows in a row agree.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/inference.pb.h"
#include "proto/micro_batch.pb.h"
#include "topology/step_model.h"

namespace trireme {

class StepDrift {
 public:
  static constexpr double kTolerance = 0.15;
  static constexpr double kWindowS = 2;  // of work

  struct Line {
    std::string text;
    bool uneven = false;  // a stage is off beside the others, or has changed
  };

  // The topology must outlive it. REQUIRES: validate_placement returned.
  StepDrift(const Topology& topology, const ModelSpec& model, const Placement& placement);

  // ---- one thread ----
  void sent(int replica, const MicroBatch& batch);
  // What is to be said now. A heartbeat that contradicts what was sent counts for nothing.
  std::vector<Line> heard(int rank, const Heartbeat& beat);

  // ---- any thread ----
  // Sets step_over_plan and drift of the ranks.
  void describe(v1::ClusterHealth& health) const;

 private:
  // Of one rank, in the window: seconds.
  struct Sums {
    double compute = 0, exchange = 0, cpu = 0;
    double planned_compute = 0, planned_exchange = 0;
    uint64_t steps = 0;
    double work() const { return compute + exchange; }
    double planned() const { return planned_compute + planned_exchange; }
  };
  struct Rank {
    int number = 0;
    std::string name;  // "rank 2 (host b)"
    std::optional<Heartbeat> last;
    Sums window;
  };
  struct Stage {
    int replica = 0, index = 0;
    StageSpec spec;
    std::vector<Rank> ranks;
    std::optional<double> previous, latest, first;  // windows' time over the planned
    Sums mean;                                      // of the ranks, in the latest
    double said = 1;
    std::string text;  // empty: as planned
  };
  // What all micro-batches up to `id` were predicted to take.
  struct Planned {
    uint64_t id = 0;
    StepTime sum;
    uint64_t steps = 0;
  };
  using History = std::deque<Planned>;  // ascending

  void add(Rank& rank, const History& sent, const Heartbeat& beat);
  bool window_ends(int replica) const;
  void end_window(Stage& stage);
  std::vector<Line> judge(std::vector<Stage>& stages);
  double median() const;                         // of all stages' latest, the lower one of two
  static bool settled_away(const Stage& stage);  // two windows, from what was said last
  std::string measure_of(const Stage& stage) const;
  std::string cause(const Stage& stage, bool same_as_others) const;
  void trim(int replica, int index);

  const StepModel model_;
  std::vector<std::vector<Stage>> replicas_;
  std::vector<std::vector<History>> sent_;              // by replica and stage
  std::map<int, std::pair<int, int>> place_;            // rank to replica and stage
  mutable std::mutex mutex_;                            // guards told_
  std::map<int, std::pair<double, std::string>> told_;  // of each rank: for describe()
};

}  // namespace trireme
