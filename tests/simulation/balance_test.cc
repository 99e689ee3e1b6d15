// SPDX-License-Identifier: Apache-2.0
// Replicas of unequal speed share requests of unequal length so that they end nearly together, in
// simulated time and with the real engine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <vector>

#include "coordinator/engine.h"
#include "tests/simulation/simulated_channel.h"
#include "tests/simulation/simulated_replica.h"
#include "tests/simulation/timeline.h"

namespace trireme {
namespace {

using std::chrono::microseconds;

struct Work {
  int32_t prompt = 0;
  int32_t output = 0;
};

// What a stage of the faster replica takes.
struct Cost {
  const char* name;
  microseconds batch{0};
  microseconds token{0};
};

struct CountingSink : RequestSink {
  explicit CountingSink(int& open) : open_(open) { ++open_; }
  bool on_token(const OutputToken&) override { return true; }
  void on_finished(FinishReason, std::optional<int32_t>) override { --open_; }
  void on_error(Code, const std::string& message) override { ADD_FAILURE() << message; }
  int& open_;
};

Placement placement_of(size_t num_replicas, int num_stages) {
  Placement placement;
  for (int rank = 1; placement.replicas_size() < static_cast<int>(num_replicas);) {
    ReplicaSpec& replica = *placement.add_replicas();
    for (int s = 0; s < num_stages; ++s) replica.add_stages()->add_shards()->set_rank(rank++);
  }
  placement.set_block_size(16);
  placement.set_num_blocks(2048);
  placement.set_max_sequences(8);
  placement.set_max_batch_tokens(64);
  placement.set_context(2048);
  return placement;
}

// The time in which one replica per member of `slowness` serves all of `work`, which comes at once.
microseconds makespan(const std::vector<int>& slowness, int num_stages, const Cost& cost,
                      const std::vector<Work>& work) {
  Timeline timeline;
  Random random(1);
  const Placement placement = placement_of(slowness.size(), num_stages);
  Topology topology;
  const int num_ranks = static_cast<int>(slowness.size()) * num_stages;
  for (int rank = 1; rank <= num_ranks; ++rank) topology.add_ranks()->set_rank(rank);
  SimulatedChannel channel(timeline, random, microseconds(0));
  EngineOptions options;
  options.max_queue = static_cast<int32_t>(work.size());
  options.vocab_size = 100;
  options.log = false;
  Engine engine(topology, placement, channel, options);
  std::vector<std::unique_ptr<SimulatedReplica>> replicas;
  for (size_t i = 0; i < slowness.size(); ++i) {
    const ReplicaSetting setting{
        placement, static_cast<int>(i), options.vocab_size,
        [=, slow = slowness[i]](int32_t n) { return slow * (cost.batch + n * cost.token); }};
    replicas.push_back(std::make_unique<SimulatedReplica>(
        setting, timeline, random, channel, [](const std::string& what) { FAIL() << what; }));
  }
  channel.set_receiver([&](int rank, const ToWorker& message) {
    replicas[static_cast<size_t>((rank - 1) / num_stages)]->receive(rank, message);
  });

  int open = 0;
  for (size_t i = 0; i < work.size(); ++i) {
    Request request;
    request.id = std::to_string(i);
    request.prompt.assign(static_cast<size_t>(work[i].prompt), 1);
    request.max_tokens = work[i].output;
    request.sink = std::make_shared<CountingSink>(open);
    engine.submit(std::move(request));
  }
  const Clock::time_point begin = timeline.now();
  do {
    while (engine.tick(timeline.now())) {
    }
  } while (open > 0 && timeline.step());
  EXPECT_EQ(open, 0);
  return std::chrono::duration_cast<microseconds>(timeline.now() - begin);
}

// Many short ones and a few that are many times as long.
std::vector<Work> skewed_work(uint64_t seed) {
  Random random(seed);
  const auto length = [&](int32_t most) {
    const double u = random.between(0, 1000) / 1000.0;
    return std::max(1, static_cast<int32_t>(most * std::pow(u, 4)));
  };
  std::vector<Work> work;
  for (int i = 0; i < 600; ++i) work.push_back({length(120), length(60)});
  return work;
}

// The time if each request went, on arrival and for good, to the replica with the fewest tokens.
microseconds bound_on_arrival(const std::vector<int>& slowness, int num_stages, const Cost& cost,
                              const std::vector<Work>& work) {
  std::vector<std::vector<Work>> shares(slowness.size());
  std::vector<int64_t> tokens(slowness.size());
  for (const Work& next : work) {
    const auto least = std::min_element(tokens.begin(), tokens.end()) - tokens.begin();
    tokens[static_cast<size_t>(least)] += next.prompt + next.output;
    shares[static_cast<size_t>(least)].push_back(next);
  }
  microseconds longest{0};
  for (size_t i = 0; i < slowness.size(); ++i) {
    longest = std::max(longest, makespan({slowness[i]}, num_stages, cost, shares[i]));
  }
  return longest;
}

class BalanceTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Stages, BalanceTest, testing::Values(1, 3));

// Ideal: each replica serves a share of the work that takes both equally long.
TEST_P(BalanceTest, AReplicaOfAThirdOfTheSpeedDoesNotHoldTheOthersUp) {
  for (const Cost& cost : {Cost{"by the step", microseconds(900), microseconds(0)},
                           Cost{"by the token", microseconds(0), microseconds(100)},
                           Cost{"mixed", microseconds(500), microseconds(20)}}) {
    for (uint64_t seed = 1; seed <= 2; ++seed) {
      for (const std::vector<int>& slowness : {std::vector{1, 3}, {3, 1}}) {
        const std::vector<Work> work = skewed_work(seed);
        const auto seconds = [](microseconds time) {
          return static_cast<double>(time.count()) / 1e6;
        };
        double rate = 0;  // of all work, per second
        for (const int slow : slowness)
          rate += 1 / seconds(makespan({slow}, GetParam(), cost, work));
        const double ideal = 1 / rate;
        const double got = seconds(makespan(slowness, GetParam(), cost, work));
        const double bound = seconds(bound_on_arrival(slowness, GetParam(), cost, work));
        std::cout << GetParam() << " stages, cost " << cost.name << ", seed " << seed << ", slower "
                  << (slowness[0] == 3 ? "first" : "last") << ": " << got / ideal
                  << " of the ideal; bound on arrival: " << bound / ideal << "\n";
        EXPECT_LE(got, 1.25 * ideal);
      }
    }
  }
}

}  // namespace
}  // namespace trireme
