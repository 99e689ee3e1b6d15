// SPDX-License-Identifier: Apache-2.0
#include "coordinator/step_drift.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "tests/support/models.h"
#include "topology/placement.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

MicroBatch decode(uint64_t id, int sequences, int positions) {
  MicroBatch batch;
  batch.set_id(id);
  for (int sequence = 1; sequence <= sequences; ++sequence) {
    SequenceChunk& chunk = *batch.add_chunks();
    chunk.set_sequence(static_cast<uint64_t>(sequence));
    chunk.set_position(positions - 1);
    chunk.add_token_ids(7);
    chunk.set_sample(true);
  }
  return batch;
}

// Ranks that take as long as is predicted, times a factor of their own.
class Played {
 public:
  struct Factors {
    double compute = 1, exchange = 1, cpu = 1;  // cpu: of the computing time
  };
  std::map<int, Factors> factors;

  Played(int tp, int pp, int dp)
      : topology_(make_topology(tp * pp * dp, 64 * kGiB)), spec_(chatglm3()) {
    PlacementOptions options;
    options.tp = tp;
    options.pp = pp;
    options.dp = dp;
    placement_ = plan_placement(topology_, spec_, options);
    drift_.emplace(topology_, spec_, placement_);
    model_.emplace(topology_, spec_, placement_);
  }

  // So many micro-batches on every replica; the ranks tell of every fifth.
  std::vector<StepDrift::Line> run(int steps) {
    std::vector<StepDrift::Line> lines;
    for (int step = 0; step < steps; ++step) {
      const MicroBatch batch = decode(++id_, 4, 500);
      for (int replica = 0; replica < placement_.replicas_size(); ++replica) {
        drift_->sent(replica, batch);
        work(replica);
      }
      if (id_ % 5 != 0) continue;
      for (const auto& [rank, beat] : beats_) {
        for (StepDrift::Line& line : drift_->heard(rank, beat)) lines.push_back(std::move(line));
      }
    }
    return lines;
  }

  StepDrift& drift() { return *drift_; }
  StepModel& model() { return *model_; }
  const Placement& placement() const { return placement_; }
  Heartbeat beat(int rank) const { return beats_.at(rank); }

  v1::RankHealth health(int rank) const {
    v1::ClusterHealth health;
    health.add_ranks()->set_rank(rank);
    drift_->describe(health);
    return health.ranks(0);
  }

 private:
  void work(int replica) {
    const auto& stages = placement_.replicas(replica).stages();
    for (int index = 0; index < stages.size(); ++index) {
      const StepTime time = model_->predict(replica, index, stages[index], {4, 2000, 0}, 4);
      for (const ShardSpec& shard : stages[index].shards()) {
        const Factors& own = factors[shard.rank()];
        Heartbeat& beat = beats_[shard.rank()];
        const auto more = [](uint64_t before, double seconds) {
          return before + static_cast<uint64_t>(1e6 * seconds);
        };
        beat.set_micro_batch(id_);
        beat.set_compute_us(more(beat.compute_us(), time.compute_s * own.compute));
        beat.set_exchange_us(more(beat.exchange_us(), time.exchange_s * own.exchange));
        beat.set_cpu_us(more(beat.cpu_us(), time.compute_s * own.compute * own.cpu));
      }
    }
  }

  const Topology topology_;
  const ModelSpec spec_;
  Placement placement_;
  std::optional<StepDrift> drift_;
  std::optional<StepModel> model_;
  uint64_t id_ = 0;
  std::map<int, Heartbeat> beats_;
};

bool says(const StepDrift::Line& line, const std::string& what) {
  return line.text.find(what) != std::string::npos;
}

#define EXPECT_SAYS(line, what) EXPECT_TRUE(says(line, what)) << (line).text

TEST(StepDrift, IsSilentWithinTheTolerance) {
  Played job(1, 2, 1);
  job.factors[1].compute = 1.1;
  job.factors[2].compute = 0.9;
  EXPECT_TRUE(job.run(300).empty());
  EXPECT_NEAR(job.health(1).step_over_plan(), 1.1, 0.01);
  EXPECT_NEAR(job.health(2).step_over_plan(), 0.9, 0.01);
  EXPECT_EQ(job.health(1).drift(), "");
  EXPECT_FALSE(job.health(9).has_step_over_plan());
}

TEST(StepDrift, NamesTheStageAndRankOnceAndItsEnd) {
  Played job(1, 2, 1);
  job.factors[2].compute = 1.4;
  std::vector<StepDrift::Line> lines = job.run(400);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].uneven);
  EXPECT_SAYS(lines[0], "stage 1 of replica 0, rank 2 (node), takes ");
  EXPECT_SAYS(lines[0], "(+40 %)");
  EXPECT_SAYS(lines[0], "a new plan would give it fewer layers");
  EXPECT_EQ(job.health(2).drift(), lines[0].text);
  EXPECT_EQ(job.health(1).drift(), "");
  job.factors[2].compute = 1;
  lines = job.run(400);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_SAYS(lines[0], "as planned again");
  EXPECT_FALSE(lines[0].uneven);
  EXPECT_EQ(job.health(2).drift(), "");
}

TEST(StepDrift, AllAlikeIsTheTableNotAStage) {
  Played job(1, 2, 2);
  for (const int rank : {1, 2, 3, 4}) job.factors[rank].compute = 3.2;
  const std::vector<StepDrift::Line> lines = job.run(400);
  ASSERT_EQ(lines.size(), 2u);  // one of each replica
  for (const StepDrift::Line& line : lines) {
    EXPECT_FALSE(line.uneven);
    EXPECT_SAYS(line, "all 2 stages alike: ");
    EXPECT_SAYS(line, "(3.2 times)");
    EXPECT_SAYS(line, "the balance of the stages holds");
  }
  EXPECT_EQ(job.health(1).drift(), job.health(2).drift());
}

TEST(StepDrift, AReplicaBesideTheOthers) {
  Played job(1, 1, 3);
  for (const int rank : {1, 2}) job.factors[rank].compute = 2;
  job.factors[3].compute = 3;
  std::set<std::string> uneven;
  for (const StepDrift::Line& line : job.run(400)) {
    if (line.uneven) uneven.insert(line.text.substr(0, line.text.find(" takes")));
  }
  EXPECT_EQ(uneven, std::set<std::string>{"stage 0 of replica 2, rank 3 (node),"});
}

TEST(StepDrift, OtherWorkOnTheCores) {
  Played job(1, 2, 1);
  job.factors[1] = {1.5, 1, 0.6};
  const std::vector<StepDrift::Line> lines = job.run(300);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_SAYS(lines[0], "other work on its cores: its thread had a CPU for 60 %");
}

TEST(StepDrift, WhatChangedSaysWhatItWas) {
  Played job(1, 2, 1);
  EXPECT_TRUE(job.run(300).empty());
  job.factors[1].compute = 1.3;
  const std::vector<StepDrift::Line> lines = job.run(300);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_SAYS(lines[0], "it was +0 % before: heat");
  EXPECT_TRUE(lines[0].uneven);
}

TEST(StepDrift, AGroupsLinkOrItsSlowestRank) {
  Played slow_link(2, 1, 1);
  for (const int rank : {1, 2}) slow_link.factors[rank].exchange = 1000;
  std::vector<StepDrift::Line> lines = slow_link.run(400);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_SAYS(lines[0], "rank 1 (node) and 1 more");
  EXPECT_SAYS(lines[0], "the link between them is slower");

  Played slow_rank(2, 1, 1);
  slow_rank.factors[2].compute = 1.6;
  slow_rank.factors[1].exchange = 1000;  // it waits for rank 2
  lines = slow_rank.run(400);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_SAYS(lines[0], "the others of its group wait for rank 2 (node)");
}

TEST(StepDrift, OneWindowIsNoDrift) {
  Played job(1, 1, 1);
  std::vector<StepDrift::Line> lines = job.run(5);  // windows of twenty begin here
  for (int round = 0; round < 10; ++round) {
    job.factors[1].compute = 2;
    for (const StepDrift::Line& line : job.run(20)) lines.push_back(line);
    job.factors[1].compute = 1;
    for (const StepDrift::Line& line : job.run(40)) lines.push_back(line);
  }
  EXPECT_TRUE(lines.empty()) << lines.front().text;
}

TEST(StepDrift, HeartbeatsThatContradictCountForNothing) {
  Played job(1, 2, 1);
  job.run(100);
  Heartbeat lie = job.beat(1);
  lie.set_micro_batch(1'000'000);  // never sent
  lie.set_compute_us(UINT64_MAX);
  EXPECT_TRUE(job.drift().heard(1, lie).empty());
  lie = job.beat(1);
  lie.set_micro_batch(50);  // back in time
  lie.set_compute_us(1);
  EXPECT_TRUE(job.drift().heard(1, lie).empty());
  EXPECT_TRUE(job.drift().heard(77, lie).empty());
  EXPECT_TRUE(job.run(300).empty());
}

// The plan's own micro-batches take what the plan says.
TEST(StepModel, AgreesWithThePlan) {
  Played job(1, 2, 1);
  const ReplicaSpec& replica = job.placement().replicas(0);
  const double batch = replica.sequences_per_micro_batch();
  const double positions = Load{}.prompt_tokens + Load{}.output_tokens / 2.0;
  for (int stage = 0; stage < 2; ++stage) {
    const StepTime time =
        job.model().predict(0, stage, replica.stages(stage), {batch, batch * positions, 0}, batch);
    EXPECT_NEAR(1e3 * (time.compute_s + time.exchange_s),
                replica.stages(stage).predicted().decode_ms(), 1e-6);
  }
}

}  // namespace
}  // namespace trireme
