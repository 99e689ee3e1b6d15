// SPDX-License-Identifier: Apache-2.0
// One simulated job, drawn from a seed: its shape, its clients and its misfortunes; and what must
// hold of it. The engine, scheduler and block manager in it are the real ones.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/engine.h"
#include "tests/simulation/simulated_channel.h"
#include "tests/simulation/simulated_replica.h"
#include "tests/simulation/timeline.h"

namespace trireme {

// How often what happened, so that a simulation that has stopped to reach a case is noticed.
struct Tally {
  int64_t requests = 0, tokens = 0, stopped = 0, full_length = 0, cancelled = 0, refused = 0;
  int64_t unavailable = 0, deadline_exceeded = 0, internal = 0;
  int64_t replicas_lost = 0, restarts = 0, moved = 0, steps = 0;
};

class Scenario {
 public:
  explicit Scenario(uint64_t seed);
  ~Scenario();

  // Runs to the end. Returns the first thing that is wrong.
  std::optional<std::string> run();
  void add_to(Tally& tally) const;

 private:
  class Client;
  // A replica's loss, as far as the coordinator knows.
  struct LossSeen {
    int replica = 0;
    Code code = Code::kUnavailable;
    Clock::time_point first, last;   // the coordinator hears of it
    std::set<std::string> culprits;  // of whom it may speak
  };

  void draw_job();
  void draw_clients();
  void draw_misfortunes();
  void crash(int replica);
  void corrupt(int replica);
  void suspect(int rank);
  bool hit(int replica);  // false: a loss is planned already
  void plan_turn();
  void violation(const std::string& what);
  void check_client(const Client& client);
  void check_error(const Client& client);
  void check_nobody_idles();
  void check_end();
  std::string rank_name(int rank) const;

  Random random_;
  Timeline timeline_;
  Topology topology_;
  Placement placement_;
  EngineOptions options_;
  std::chrono::microseconds turn_delay_max_{0};
  std::unique_ptr<SimulatedChannel> channel_;
  std::vector<std::unique_ptr<SimulatedReplica>> replicas_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::shared_ptr<Client>> clients_;
  std::vector<LossSeen> losses_;
  std::set<int> hit_;  // replicas
  bool turn_planned_ = false;
  int64_t num_steps_ = 0;
  std::optional<std::string> violation_;
};

}  // namespace trireme
