// SPDX-License-Identifier: Apache-2.0
// The engine's other half: what the ranks say. A message from a rank is not trusted; a replica that
// lost a rank, or one of whose ranks says what it must not, ends, and the others go on.
#include <algorithm>
#include <utility>

#include "coordinator/engine.h"
#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "topology/placement.h"

namespace trireme {
namespace {

constexpr int kMaxEventsPerTurn = 1024;  // requests and deadlines have their turn too
constexpr int kMaxBlamed = 1024;         // of a report: a rank's peers are few
constexpr std::chrono::milliseconds kJudgeInterval{150};
constexpr std::chrono::milliseconds kTellInterval{500};

}  // namespace

void Engine::name_ranks(const Topology& topology, const Placement& placement) {
  for (const RankInfo& info : topology.ranks()) {
    ranks_[info.rank()].name = roster_.name(info.rank());
  }
  for (Replica& replica : replicas_) {
    const ReplicaSpec& spec = placement.replicas(replica.index);
    replica.ranks = ranks_of(spec);
    for (const int number : replica.ranks) {
      const auto rank = ranks_.find(number);
      CHECK(rank != ranks_.end() && rank->second.replica == nullptr,
            "rank " + std::to_string(number) +
                " of the placement is not in the topology, or is placed twice");
      rank->second.replica = &replica;
    }
    for (const StageSpec& stage : spec.stages()) {
      CHECK(stage.shards_size() > 0, "a stage without ranks");
      replica.reporter = stage.shards(0).rank();  // the last one's stays
    }
  }
}

bool Engine::take_events(Clock::time_point now) {
  int num_events = 0;
  bool only_messages = true;
  bool only_beats = true;
  while (num_events < kMaxEventsPerTurn) {
    const std::optional<ChannelEvent> event = channel_.poll();
    if (!event) break;
    ++num_events;
    only_messages = only_messages && event->kind == ChannelEvent::Kind::kMessage;
    only_beats = only_beats && event->message.has_heartbeat();
    const auto rank = ranks_.find(event->rank);
    if (rank == ranks_.end()) {
      log_warn("an event of rank " + std::to_string(event->rank) + ", which has no place here");
      continue;
    }
    take_event(*event, rank->second, now);
  }
  // Only now: the cause may come behind its consequence.
  explained_by_.reset();
  bool lost = false;
  for (Replica& replica : replicas_) {
    const std::optional<Loss> cause = find_cause(replica, now);
    if (cause) lose(replica, *cause, now);
    lost = lost || cause;
  }
  if (num_events > 0) tell_health(lost || !only_messages, now);
  only_beats_ = only_beats && !lost;
  return num_events > 0 || lost;
}

// event: there was one that may have changed a state; a heartbeat does by what does not come.
void Engine::tell_health(bool event, Clock::time_point now) {
  if (!event && now - judged_ < kJudgeInterval) return;
  judged_ = now;
  const bool changed = roster_.states_changed(now);
  const bool busy = !active_.empty() || roster_.busy();
  // And once more when it has come to rest.
  const bool again = now - health_told_ >= kTellInterval && (busy || told_busy_);
  if (!changed && !again) return;
  health_told_ = now;
  told_busy_ = busy;
  const std::lock_guard lock(mutex_);
  health_changed_ = true;
}

void Engine::take_event(const ChannelEvent& event, Rank& rank, Clock::time_point now) {
  roster_.hear(event, now);
  if (event.kind == ChannelEvent::Kind::kMessage) {
    take_message(event.rank, event.message, rank, now);
  } else if (event.kind == ChannelEvent::Kind::kClosed) {
    rank.dead = true;
    if (rank.failed) return;
    Loss loss{Code::kUnavailable, rank.name + " is lost: " + line_of_rank(event.reason)};
    note_loss(event.rank, rank, std::move(loss), now);
  }
}

void Engine::take_message(int rank_number, const FromWorker& message, Rank& rank,
                          Clock::time_point now) {
  switch (message.kind_case()) {
    case FromWorker::kHeartbeat:  // the roster has it
      if (options_.drift) compare_steps(rank_number, message.heartbeat());
      return;
    case FromWorker::kResult: take_result(rank_number, message.result(), rank, now); return;
    case FromWorker::kFailed: {
      rank.failed = true;
      const Failed& failed = message.failed();
      const auto code = static_cast<Code>(failed.code());
      Loss loss{Code::kUnavailable, rank.name + " failed: " + line_of_rank(failed.message())};
      loss.consequence = code == Code::kCancelled || code == Code::kUnavailable;
      const int blamed = std::min(failed.waiting_for_size(), kMaxBlamed);
      loss.blamed.assign(failed.waiting_for().begin(), failed.waiting_for().begin() + blamed);
      note_loss(rank_number, rank, std::move(loss), now);
      return;
    }
    case FromWorker::kHello:
    case FromWorker::kProgress:
    case FromWorker::kReady:
    case FromWorker::kLinks:
    case FromWorker::kSpeeds:
    case FromWorker::kDigests:
    case FromWorker::kGroupKey:
    case FromWorker::kKvRoom:
    case FromWorker::KIND_NOT_SET: break;
  }
  note_loss(rank_number, rank,
            {Code::kInternal, rank.name + " sent a message of kind " +
                                  std::to_string(message.kind_case()) +
                                  ", which has no place while it serves"},
            now);
}

void Engine::compare_steps(int rank_number, const Heartbeat& beat) {
  for (const StepDrift::Line& line : options_.drift->heard(rank_number, beat)) {
    if (!options_.log) continue;
    line.uneven ? log_warn(line.text) : log_info(line.text);
  }
}

void Engine::take_result(int rank_number, const MicroBatchResult& result, const Rank& rank,
                         Clock::time_point now) {
  Replica* const replica = rank.replica;
  if (replica != nullptr && (!replica->scheduler || has_cause(replica->losses))) return;
  if (replica == nullptr || rank_number != replica->reporter) {
    note_loss(rank_number, rank,
              {Code::kInternal, rank.name + " sent a result, which is not its part"}, now);
    return;
  }
  std::vector<Scheduler::Drawn> drawn;
  try {
    drawn = replica->scheduler->complete(result);
  } catch (const Error& error) {  // a peer's mistake ends its replica, not the coordinator
    note_loss(rank_number, rank,
              {error.code(), rank.name + " sent a wrong result: " + error.what()}, now);
    return;
  }
  // With all stages busy, a micro-batch leaves as often as one spends in a stage.
  const std::chrono::duration<double> time = now - replica->in_flight.front().dispatched;
  speeds_.note(replica->index, replica->in_flight.front().num_tokens,
               time.count() / replica->num_stages);
  replica->in_flight.pop_front();
  for (const Scheduler::Drawn& next : drawn) deliver(next.sequence, *next.token, now);
}

void Engine::note_loss(int rank_number, const Rank& rank, Loss loss, Clock::time_point now) {
  loss.rank = rank_number;
  loss.when = now;
  if (rank.replica == nullptr || !rank.replica->scheduler) {  // a spare, or lost already
    roster_.note_failure(rank_number, loss.message, now);
  } else {
    rank.replica->losses.push_back(std::move(loss));
  }
}

bool Engine::has_cause(const std::vector<Loss>& losses) {
  return std::any_of(losses.begin(), losses.end(),
                     [](const Loss& loss) { return !loss.consequence; });
}

std::optional<Engine::Loss> Engine::find_cause(Replica& replica, Clock::time_point now) {
  std::vector<Loss>& losses = replica.losses;
  if (losses.empty() || !replica.scheduler) return std::nullopt;
  for (const Loss& loss : losses) {
    if (!loss.consequence) return loss;
  }
  const Clock::time_point until = losses.front().when + kExplainTime;
  if (now < until) {
    explained_by_ = std::min(explained_by_.value_or(until), until);
    return std::nullopt;
  }
  Loss cause = losses.front();
  for (const int blamed : cause.blamed) {
    const auto rank = ranks_.find(blamed);
    if (rank == ranks_.end() || rank->second.replica != &replica) continue;
    cause.rank = blamed;
    cause.message = rank->second.name + " cannot be reached: " + cause.message;
    break;
  }
  return cause;
}

void Engine::lose(Replica& replica, const Loss& cause, Clock::time_point now) {
  const std::string why = cause.message;
  const Code code = cause.code;
  roster_.note_failure(cause.rank, why, now);
  for (const Loss& loss : std::exchange(replica.losses, {})) {
    if (loss.message != why) roster_.note_failure(loss.rank, loss.message, now);
  }
  roster_.abandon(replica.index);
  if (options_.log) {
    log_error("a consequence: replica " + std::to_string(replica.index) + " is lost: " + why);
  }
  ToWorker abandon;
  abandon.mutable_abandon()->set_reason(why);
  for (const int rank : replica.ranks) {
    if (!ranks_.at(rank).dead) channel_.send(rank, abandon);
  }
  {
    const std::lock_guard lock(mutex_);
    replica.scheduler.reset();
    health_changed_ = true;
    if (--num_alive_ == 0) lost_reason_ = why;
  }
  std::vector<uint64_t> sequences;
  for (const auto& [sequence, active] : active_) {
    const bool has_no_other = active.replica == nullptr && num_alive_ == 0;
    if (active.replica == &replica || has_no_other) sequences.push_back(sequence);
  }
  std::sort(sequences.begin(), sequences.end());
  for (const uint64_t sequence : sequences) {
    const auto found = active_.find(sequence);
    if (found == active_.end()) continue;  // it failed with another answer to its request
    Active& active = found->second;
    // Its client has seen nothing yet, so another replica can begin anew. Once only: a request that
    // ends a replica must not end them all.
    if (active.num_output == 0 && !active.moved && num_alive_ > 0) {
      active.moved = active.started.has_value();
      active.replica = nullptr;
      queue_.insert(sequence);
      continue;
    }
    fail(sequence, code, why + "; send it again", now, ", a consequence");
  }
}

v1::ClusterHealth Engine::health(Clock::time_point now) const {
  v1::ClusterHealth health = roster_.health(now);
  if (options_.drift) options_.drift->describe(health);
  const std::lock_guard lock(mutex_);
  if (!drain_reason_.empty()) health.set_state("draining");
  if (!stop_reason_.empty()) health.set_state("ended");
  if (!drain_reason_.empty() || !stop_reason_.empty()) health.set_serving(false);
  return health;
}

}  // namespace trireme
