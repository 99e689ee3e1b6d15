// SPDX-License-Identifier: Apache-2.0
#include "coordinator/step_drift.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/base/check.h"

namespace trireme {
namespace {

// Of the slowest stage; the others of its replica need a tenth.
constexpr uint64_t kLeastSteps = 20;
constexpr double kLeastShare = 0.1;
// Micro-batches whose predictions are kept for ranks that have not told of them.
constexpr size_t kMostSent = 100'000;
// A thread that had a CPU for less of the time that it computed was kept from it.
constexpr double kStarved = 0.85;

bool differs(double value, double from) {
  return std::fabs(value / from - 1) > StepDrift::kTolerance;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, value < 9.95 ? "%.2g" : "%.0f", value);
  return text;
}

// "+41 %", "-20 %", "3.2 times"
std::string beside(double ratio) {
  if (ratio >= 3) return number(ratio) + " times";
  char text[32];
  const double percent = std::round(100 * (ratio - 1));
  std::snprintf(text, sizeof text, "%+.0f %%", percent == 0 ? 0 : percent);  // not "-0"
  return text;
}

StepWork work_of(const MicroBatch& batch, double& sampled) {
  StepWork work;
  for (const SequenceChunk& chunk : batch.chunks()) {
    const double tokens = chunk.token_ids_size();
    const double before = chunk.position();
    work.tokens += tokens;
    sampled += chunk.sample() ? 1 : 0;
    if (tokens > 1) {
      work.pairs += tokens * (before + tokens / 2);
    } else {
      work.cached += before + 1;
    }
  }
  return work;
}

}  // namespace

StepDrift::StepDrift(const Topology& topology, const ModelSpec& model, const Placement& placement)
    : model_(topology, model, placement) {
  std::map<int, std::string> hosts;
  for (const RankInfo& rank : topology.ranks()) hosts[rank.rank()] = rank.host();
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    replicas_.emplace_back();
    sent_.emplace_back();
    for (const StageSpec& spec : placement.replicas(replica).stages()) {
      Stage& stage = replicas_.back().emplace_back();
      stage.replica = replica;
      stage.index = static_cast<int>(replicas_.back().size()) - 1;
      stage.spec = spec;
      sent_.back().emplace_back().push_back({});
      for (const ShardSpec& shard : spec.shards()) {
        Rank& rank = stage.ranks.emplace_back();
        rank.number = shard.rank();
        rank.name = "rank " + std::to_string(shard.rank()) + " (" + hosts[shard.rank()] + ")";
        place_[shard.rank()] = {replica, stage.index};
      }
    }
  }
}

void StepDrift::sent(int replica, const MicroBatch& batch) {
  double sampled = 0;
  const StepWork work = work_of(batch, sampled);
  for (const Stage& stage : replicas_[static_cast<size_t>(replica)]) {
    History& history = sent_[static_cast<size_t>(replica)][static_cast<size_t>(stage.index)];
    Planned next = history.back();
    CHECK(batch.id() > next.id, "micro-batch " + std::to_string(batch.id()) + " was sent before");
    const StepTime time = model_.predict(replica, stage.index, stage.spec, work, sampled);
    next.id = batch.id();
    next.sum.compute_s += time.compute_s;
    next.sum.exchange_s += time.exchange_s;
    ++next.steps;
    history.push_back(next);
    if (history.size() > kMostSent) history.pop_front();
  }
}

std::vector<StepDrift::Line> StepDrift::heard(int number, const Heartbeat& beat) {
  const auto place = place_.find(number);
  if (place == place_.end()) return {};  // a spare
  const auto [replica, index] = place->second;
  Stage& stage = replicas_[static_cast<size_t>(replica)][static_cast<size_t>(index)];
  for (Rank& rank : stage.ranks) {
    if (rank.number != number) continue;
    add(rank, sent_[static_cast<size_t>(replica)][static_cast<size_t>(index)], beat);
  }
  trim(replica, index);
  if (!window_ends(replica)) return {};
  std::vector<Stage>& stages = replicas_[static_cast<size_t>(replica)];
  for (Stage& each : stages) end_window(each);
  std::vector<Line> lines = judge(stages);
  const std::lock_guard lock(mutex_);
  for (Stage& each : stages) {
    for (Rank& rank : each.ranks) {
      rank.window = {};
      told_[rank.number] = {*each.latest, each.text};
    }
  }
  return lines;
}

// What all ranks of the stage have told of is not asked for again.
void StepDrift::trim(int replica, int index) {
  const Stage& stage = replicas_[static_cast<size_t>(replica)][static_cast<size_t>(index)];
  uint64_t told = UINT64_MAX;
  for (const Rank& rank : stage.ranks) {
    told = std::min(told, rank.last ? rank.last->micro_batch() : 0);
  }
  History& history = sent_[static_cast<size_t>(replica)][static_cast<size_t>(index)];
  while (history.size() > 1 && history.front().id < told) history.pop_front();
}

void StepDrift::add(Rank& rank, const History& sent, const Heartbeat& beat) {
  const auto find = [&](uint64_t id) -> const Planned* {
    const auto found = std::lower_bound(
        sent.begin(), sent.end(), id,
        [](const Planned& planned, uint64_t wanted) { return planned.id < wanted; });
    return found != sent.end() && found->id == id ? &*found : nullptr;
  };
  const Planned* const now = find(beat.micro_batch());
  if (now == nullptr) return;
  const Planned* const before = rank.last ? find(rank.last->micro_batch()) : nullptr;
  const auto seconds = [&](uint64_t (Heartbeat::*field)() const) {
    const uint64_t from = ((*rank.last).*field)();
    return 1e-6 * static_cast<double>((beat.*field)() - from);
  };
  const bool grows = before != nullptr && beat.compute_us() >= rank.last->compute_us() &&
                     beat.exchange_us() >= rank.last->exchange_us() &&
                     beat.cpu_us() >= rank.last->cpu_us() && now->steps >= before->steps;
  if (grows && now->steps > before->steps) {
    Sums& sums = rank.window;
    sums.compute += seconds(&Heartbeat::compute_us);
    sums.exchange += seconds(&Heartbeat::exchange_us);
    sums.cpu += seconds(&Heartbeat::cpu_us);
    sums.planned_compute += now->sum.compute_s - before->sum.compute_s;
    sums.planned_exchange += now->sum.exchange_s - before->sum.exchange_s;
    sums.steps += now->steps - before->steps;
  }
  // While a step is in work its CPU time is, and so it counts from before it.
  if (!grows || now->steps > before->steps) rank.last = beat;
}

bool StepDrift::window_ends(int replica) const {
  double most = 0, least = INFINITY;
  for (const Stage& stage : replicas_[static_cast<size_t>(replica)]) {
    for (const Rank& rank : stage.ranks) {
      const bool enough = rank.window.steps >= kLeastSteps && rank.window.planned() > 0 &&
                          std::isfinite(rank.window.planned());
      most = std::max(most, rank.window.work());
      least = std::min(least, enough ? rank.window.work() : 0);
    }
  }
  return most >= kWindowS && least >= kLeastShare * kWindowS;
}

void StepDrift::end_window(Stage& stage) {
  double ratio = 0;
  stage.mean = {};
  const auto count = static_cast<double>(stage.ranks.size());
  for (const Rank& rank : stage.ranks) {
    const Sums& sums = rank.window;
    const auto steps = static_cast<double>(sums.steps);
    ratio += sums.work() / sums.planned() / count;
    stage.mean.compute += sums.compute / steps / count;
    stage.mean.exchange += sums.exchange / steps / count;
    stage.mean.planned_compute += sums.planned_compute / steps / count;
    stage.mean.planned_exchange += sums.planned_exchange / steps / count;
  }
  stage.previous = stage.latest;
  stage.latest = ratio;
  if (stage.previous && !stage.first) stage.first = (*stage.previous + ratio) / 2;
}

double StepDrift::median() const {
  std::vector<double> known;
  for (const std::vector<Stage>& stages : replicas_) {
    for (const Stage& stage : stages) {
      if (stage.latest) known.push_back(*stage.latest);
    }
  }
  const auto middle = known.begin() + std::ssize(known) / 2 - (known.size() % 2 == 0 ? 1 : 0);
  std::nth_element(known.begin(), middle, known.end());
  return *middle;
}

bool StepDrift::settled_away(const Stage& stage) {
  if (!stage.previous) return false;
  const bool both = differs(*stage.previous, stage.said) && differs(*stage.latest, stage.said);
  const bool same_side = (*stage.previous > stage.said) == (*stage.latest > stage.said);
  const bool back = stage.said != 1 && !differs(*stage.previous, 1) && !differs(*stage.latest, 1);
  return (both && same_side) || back;
}

std::vector<StepDrift::Line> StepDrift::judge(std::vector<Stage>& stages) {
  const double middle = median();
  const auto is_alike = [&](const Stage& stage) { return !differs(*stage.latest, middle); };
  const bool all_alike = std::all_of(stages.begin(), stages.end(), is_alike);
  if (all_alike && std::none_of(stages.begin(), stages.end(), settled_away)) return {};
  std::vector<Line> lines;
  const auto say = [&](Stage& stage, const std::string& whose) {
    stage.said = (stage.previous.value_or(*stage.latest) + *stage.latest) / 2;
    const bool planned = !differs(stage.said, 1);
    if (planned) stage.said = 1;
    const std::string text =
        whose + measure_of(stage) +
        (planned ? ": as planned again" : ". Likely cause: " + cause(stage, is_alike(stage))) +
        (!planned && all_alike ? "; the balance of the stages holds" : "");
    stage.text = planned ? "" : text;
    const bool changed = stage.first && differs(*stage.latest, *stage.first);
    lines.push_back({text, !planned && (!is_alike(stage) || changed)});
  };
  if (all_alike) {
    Stage& slowest = *std::max_element(
        stages.begin(), stages.end(),
        [](const Stage& a, const Stage& b) { return a.mean.work() < b.mean.work(); });
    say(slowest,
        stages.size() > 1 ? "all " + std::to_string(stages.size()) + " stages alike: " : "");
    for (Stage& stage : stages) {
      stage.said = slowest.said;
      stage.text = slowest.text;
    }
    return lines;
  }
  for (Stage& stage : stages) {
    if (settled_away(stage)) say(stage, "");
  }
  return lines;
}

// "stage 1 of replica 0, rank 2 (b), takes 14 ms a step, planned were 10 ms (+41 %)"
std::string StepDrift::measure_of(const Stage& stage) const {
  std::string who = "stage " + std::to_string(stage.index) + " of replica " +
                    std::to_string(stage.replica) + ", " + stage.ranks.front().name;
  if (stage.ranks.size() > 1) {
    who += " and " + std::to_string(stage.ranks.size() - 1) + " more";
  }
  return who + ", takes " + number(1e3 * stage.mean.work()) + " ms a step, planned were " +
         number(1e3 * stage.mean.planned()) + " ms (" + beside(*stage.latest) + ")";
}

std::string StepDrift::cause(const Stage& stage, bool same_as_others) const {
  const std::string planned =
      " than the plan takes it to be (" + model_.device_type(stage.replica, stage.index) + ")";
  if (*stage.latest < 1) {
    return same_as_others
               ? "this machine is faster" + planned
               : "its device is faster" + planned + "; a new plan would give it more layers";
  }
  const auto slowness = [](const Rank& rank) {
    return rank.window.compute / rank.window.planned_compute;
  };
  const auto [fast, slow] =
      std::minmax_element(stage.ranks.begin(), stage.ranks.end(),
                          [&](const Rank& a, const Rank& b) { return slowness(a) < slowness(b); });
  const double beyond = stage.mean.exchange - stage.mean.planned_exchange;
  const bool waits = differs(slowness(*slow), slowness(*fast));
  if (!waits && beyond > 0.5 * (stage.mean.work() - stage.mean.planned())) {
    return "the all-reduces of its ranks take " + number(1e3 * stage.mean.exchange) +
           " ms a step, planned were " + number(1e3 * stage.mean.planned_exchange) +
           ": the link between them is slower than it was measured, or others use it";
  }
  const std::string who =
      waits ? "the others of its group wait for " + slow->name + ": " : std::string();
  const double share = slow->window.cpu / slow->window.compute;
  if (slow->window.cpu > 0 && share < kStarved) {
    return who + "other work on its cores: its thread had a CPU for " + number(100 * share) +
           " % of the time that it computed";
  }
  if (stage.first && *stage.latest > *stage.first && differs(*stage.latest, *stage.first)) {
    return who + "it was " + beside(*stage.first) +
           " before: heat, a lower clock, or other work on its host";
  }
  if (same_as_others && !waits) {
    return "this machine is slower" + planned;
  }
  return who + "its device is slower" + planned +
         ": heat, a power limit, or other work on its host; a new plan would give it fewer layers";
}

void StepDrift::describe(v1::ClusterHealth& health) const {
  const std::lock_guard lock(mutex_);
  for (v1::RankHealth& rank : *health.mutable_ranks()) {
    const auto told = told_.find(rank.rank());
    if (told == told_.end()) continue;
    rank.set_step_over_plan(told->second.first);
    rank.set_drift(told->second.second);
  }
}

}  // namespace trireme
