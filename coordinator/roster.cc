// SPDX-License-Identifier: Apache-2.0
#include "coordinator/roster.h"

#include <algorithm>
#include <map>

#include "kernels/base/log.h"
#include "kernels/base/printable.h"

namespace trireme {
namespace {

int64_t milliseconds_of(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

// Null: not of the job.
template <class Ranks>
auto* find(Ranks& ranks, int number) {
  const auto found =
      std::lower_bound(ranks.begin(), ranks.end(), number,
                       [](const RankRecord& rank, int wanted) { return rank.rank < wanted; });
  return found != ranks.end() && found->rank == number ? &*found : nullptr;
}

void describe(const RankRecord& rank, const Verdict& verdict, Clock::time_point now,
              v1::RankHealth& health) {
  health.set_rank(rank.rank);
  health.set_host(rank.host);
  health.set_state(name_of(verdict.state));
  health.set_why(verdict.why);
  if (rank.replica >= 0) {
    health.set_replica(rank.replica);
    health.set_stage(rank.stage);
  }
  if (!rank.heard) return;
  health.set_micro_batch(rank.beat.micro_batch());
  health.set_current_micro_batch(rank.beat.current());
  health.set_operation(operation_of(rank.beat));
  *health.mutable_waiting_for() = rank.beat.waiting_for();
  const int64_t age = milliseconds_of(now - *rank.heard);
  health.set_heartbeat_age_ms(age);
  // It has been in it since the heartbeat, too, as far as is known.
  health.set_since_ms(
      static_cast<int64_t>(std::min<uint64_t>(rank.beat.operation_us(), 1e15)) / 1000 + age);
}

}  // namespace

std::string line_of_rank(std::string_view text) {
  constexpr size_t kMostBytes = 1000;
  return printable(text.substr(0, kMostBytes));
}

Roster::Roster(const Topology& topology, const Placement& placement, bool log) : log_(log) {
  for (const RankInfo& info : topology.ranks()) {
    RankRecord& rank = ranks_.emplace_back();
    rank.rank = info.rank();
    rank.host = info.host();
  }
  std::sort(ranks_.begin(), ranks_.end(),
            [](const RankRecord& a, const RankRecord& b) { return a.rank < b.rank; });
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    const auto& stages = placement.replicas(replica).stages();
    for (int stage = 0; stage < stages.size(); ++stage) {
      for (const ShardSpec& shard : stages[stage].shards()) {
        RankRecord* const rank = find(ranks_, shard.rank());
        if (rank == nullptr) continue;
        rank->replica = replica;
        rank->stage = stage;
      }
    }
  }
  states_changed({});
}

void Roster::hear(const ChannelEvent& event, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  RankRecord* const found = find(ranks_, event.rank);
  if (found == nullptr) return;
  RankRecord& rank = *found;
  switch (event.kind) {
    case ChannelEvent::Kind::kMessage:
      if (event.message.has_heartbeat()) note_heartbeat(rank, event.message.heartbeat(), now);
      return;
    case ChannelEvent::Kind::kSuspected:
      rank.silent = true;
      rank.reason = event.reason;
      return;
    case ChannelEvent::Kind::kRecovered: rank.silent = false; return;
    case ChannelEvent::Kind::kClosed:
      rank.dead = true;
      rank.reason = event.reason;
      return;
  }
}

void Roster::abandon(int replica) {
  const std::lock_guard lock(mutex_);
  for (RankRecord& rank : ranks_) {
    if (rank.replica == replica) rank.replica_lost = true;
  }
}

bool Roster::note_failure(int number, const std::string& what, Clock::time_point now) {
  std::string line;
  bool first = true;
  {
    const std::lock_guard lock(mutex_);
    const RankRecord* const found = find(ranks_, number);
    if (found == nullptr) return false;
    const RankRecord& rank = *found;
    first = std::none_of(failures_.begin(), failures_.end(), [&](const Failure& earlier) {
      return follows_from(earlier.rank, now - earlier.when, rank);
    });
    line = what + "; it was " + doing(rank, now);
    if (first) {
      line = "first failure: " + line;
      failures_.push_back({rank, now, line});
    } else {
      line = "a consequence: " + line;
    }
  }
  if (log_ && first) log_error(line);
  if (log_ && !first) log_info(line);
  return first;
}

bool Roster::states_changed(Clock::time_point now) {
  using State = Verdict::State;
  std::vector<State> states;
  std::vector<std::string> doubts, relieved;
  {
    const std::lock_guard lock(mutex_);
    const std::vector<Verdict> verdicts = judge(ranks_, now);
    for (size_t i = 0; i < verdicts.size(); ++i) {
      states.push_back(verdicts[i].state);
      const State before = told_.empty() ? states.back() : told_[i];
      if (states.back() == before) continue;
      const std::string name = name_of(ranks_[i]);
      if (states.back() == State::kSuspected) {
        doubts.push_back(name + " is suspected: " + verdicts[i].why + "; it was " +
                         doing(ranks_[i], now));
      } else if (before == State::kSuspected && states.back() == State::kServing) {
        relieved.push_back(name + " is well again");
      }
    }
  }
  if (states == told_) return false;
  told_ = std::move(states);
  if (!log_) return true;
  for (const std::string& line : doubts) log_warn(line);
  for (const std::string& line : relieved) log_info(line);
  return true;
}

bool Roster::busy() const {
  const std::lock_guard lock(mutex_);
  return std::any_of(ranks_.begin(), ranks_.end(), [](const RankRecord& rank) {
    if (rank.dead) return false;
    return rank.silent || rank.beat.current() != 0 || rank.beat.operation() != OPERATION_IDLE;
  });
}

v1::ClusterHealth Roster::health(Clock::time_point now) const {
  v1::ClusterHealth health;
  const std::lock_guard lock(mutex_);
  const std::vector<Verdict> verdicts = judge(ranks_, now);
  std::map<int, bool> whole;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    describe(ranks_[i], verdicts[i], now, *health.add_ranks());
    if (ranks_[i].replica < 0) continue;
    whole.try_emplace(ranks_[i].replica, true).first->second &=
        verdicts[i].state == Verdict::State::kServing;
  }
  const auto is_whole = [](const auto& replica) { return replica.second; };
  const bool any = std::any_of(whole.begin(), whole.end(), is_whole);
  const bool all = std::all_of(whole.begin(), whole.end(), is_whole);
  health.set_serving(any);
  health.set_state(!any ? "not serving" : all ? "serving" : "degraded");
  if (!failures_.empty()) health.set_first_failure(failures_.back().line);
  return health;
}

std::string Roster::name(int number) const {
  const std::lock_guard lock(mutex_);
  const RankRecord* const found = find(ranks_, number);
  return found == nullptr ? "rank " + std::to_string(number) : name_of(*found);
}

std::string Roster::first_failure() const {
  const std::lock_guard lock(mutex_);
  return failures_.empty() ? "" : failures_.back().line;
}

}  // namespace trireme
