// SPDX-License-Identifier: Apache-2.0
// The engine's other half: what the ranks say. A message from a rank is not trusted; a replica that
// lost a rank, or one of whose ranks says what it must not, ends, and the others go on.
#include <algorithm>

#include "coordinator/engine.h"
#include "kernels/base/check.h"
#include "kernels/base/log.h"

namespace trireme {
namespace {

constexpr int kMaxEventsPerTurn = 1024;  // requests and deadlines have their turn too
constexpr size_t kMaxReasonBytes = 1000;

// A peer's text, fit for one line of the log and for a status.
std::string printable(const std::string& text) {
  std::string line = text.substr(0, kMaxReasonBytes);
  for (char& c : line) {
    if (c < 0x20 || c == 0x7f) c = '?';
  }
  return line;
}

}  // namespace

void Engine::name_ranks(const Topology& topology, const Placement& placement) {
  for (const RankInfo& info : topology.ranks()) {
    Rank& rank = ranks_[info.rank()];
    rank.host = info.host();
    rank.name = "rank " + std::to_string(info.rank()) + " (host " + info.host() + ", spare)";
  }
  for (Replica& replica : replicas_) {
    const ReplicaSpec& spec = placement.replicas(replica.index);
    for (int stage = 0; stage < spec.stages_size(); ++stage) {
      CHECK(spec.stages(stage).shards_size() > 0, "a stage without ranks");
      for (const ShardSpec& shard : spec.stages(stage).shards()) {
        const auto rank = ranks_.find(shard.rank());
        CHECK(rank != ranks_.end() && rank->second.replica == nullptr,
              "rank " + std::to_string(shard.rank()) +
                  " of the placement is not in the topology, "
                  "or is placed twice");
        rank->second.replica = &replica;
        rank->second.name = "rank " + std::to_string(shard.rank()) + " (host " + rank->second.host +
                            ", stage " + std::to_string(stage) + ")";
        replica.ranks.push_back(shard.rank());
      }
    }
    replica.reporter = spec.stages(spec.stages_size() - 1).shards(0).rank();
  }
}

bool Engine::take_events(Clock::time_point now) {
  int num_events = 0;
  while (num_events < kMaxEventsPerTurn) {
    const std::optional<ChannelEvent> event = channel_.poll();
    if (!event) break;
    ++num_events;
    const auto rank = ranks_.find(event->rank);
    if (rank == ranks_.end()) {
      log_warn("an event of rank " + std::to_string(event->rank) + ", which has no place here");
      continue;
    }
    take_event(*event, rank->second, now);
  }
  // Only now: the cause may come behind its consequence.
  for (Replica& replica : replicas_) {
    if (replica.scheduler && replica.loss) lose(replica, now);
  }
  return num_events > 0;
}

void Engine::take_event(const ChannelEvent& event, Rank& rank, Clock::time_point now) {
  if (event.kind == ChannelEvent::Kind::kMessage) {
    take_message(event.rank, event.message, rank, now);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    rank.suspected = event.kind == ChannelEvent::Kind::kSuspected;
    rank.dead = rank.dead || event.kind == ChannelEvent::Kind::kClosed;
    health_changed_ = true;
  }
  if (event.kind == ChannelEvent::Kind::kClosed && !rank.failed) {
    note_loss(rank, {Code::kUnavailable, rank.name + " is lost: " + printable(event.reason)});
  }
}

void Engine::take_message(int rank_number, const FromWorker& message, Rank& rank,
                          Clock::time_point now) {
  switch (message.kind_case()) {
    case FromWorker::kHeartbeat: {
      const std::lock_guard lock(mutex_);
      rank.micro_batch = message.heartbeat().micro_batch();
      return;
    }
    case FromWorker::kResult: take_result(rank_number, message.result(), rank, now); return;
    case FromWorker::kFailed: {
      rank.failed = true;
      const auto code = static_cast<Code>(message.failed().code());
      note_loss(rank, {Code::kUnavailable,
                       rank.name + " failed: " + printable(message.failed().message()),
                       code == Code::kCancelled || code == Code::kUnavailable});
      return;
    }
    case FromWorker::kHello:
    case FromWorker::kProgress:
    case FromWorker::kReady:
    case FromWorker::KIND_NOT_SET: break;
  }
  note_loss(rank, {Code::kInternal, rank.name + " sent a message of kind " +
                                        std::to_string(message.kind_case()) +
                                        ", which has no place while it serves"});
}

void Engine::take_result(int rank_number, const MicroBatchResult& result, const Rank& rank,
                         Clock::time_point now) {
  Replica* const replica = rank.replica;
  if (replica != nullptr && (!replica->scheduler || replica->loss)) return;
  if (replica == nullptr || rank_number != replica->reporter) {
    note_loss(rank, {Code::kInternal, rank.name + " sent a result, which is not its part"});
    return;
  }
  std::vector<Scheduler::Drawn> drawn;
  try {
    drawn = replica->scheduler->complete(result);
  } catch (const Error& error) {  // a peer's mistake ends its replica, not the coordinator
    note_loss(rank, {error.code(), rank.name + " sent a wrong result: " + error.what()});
    return;
  }
  // With all stages busy, a micro-batch leaves as often as one spends in a stage.
  const std::chrono::duration<double> time = now - replica->in_flight.front().dispatched;
  speeds_.note(replica->index, replica->in_flight.front().num_tokens,
               time.count() / replica->num_stages);
  replica->in_flight.pop_front();
  for (const Scheduler::Drawn& next : drawn) deliver(next.sequence, *next.token, now);
}

void Engine::note_loss(const Rank& rank, Loss loss) {
  if (rank.replica == nullptr) {
    if (options_.log) log_warn("a spare: " + loss.message);
    return;
  }
  if (!rank.replica->scheduler) return;  // lost already: the first one was the cause
  std::optional<Loss>& known = rank.replica->loss;
  if (!known || (known->consequence && !loss.consequence)) known = std::move(loss);
}

void Engine::lose(Replica& replica, Clock::time_point now) {
  const std::string& why = replica.loss->message;
  if (options_.log) log_error("replica " + std::to_string(replica.index) + " is lost: " + why);
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
    fail(sequence, replica.loss->code, why + "; send it again", now);
  }
}

v1::ClusterHealth Engine::health() const {
  const std::lock_guard lock(mutex_);
  std::map<const Replica*, bool> whole;
  v1::ClusterHealth health;
  for (const auto& [number, rank] : ranks_) {
    v1::RankHealth& state = *health.add_ranks();
    state.set_rank(number);
    state.set_host(rank.host);
    state.set_micro_batch(rank.micro_batch);
    const bool lost = rank.replica != nullptr && !rank.replica->scheduler;
    state.set_state(rank.dead                 ? "dead"
                    : rank.suspected          ? "suspected"
                    : rank.replica == nullptr ? "spare"
                    : lost                    ? "abandoned"
                                              : "serving");
    if (rank.replica == nullptr) continue;
    const bool good = !lost && !rank.dead && !rank.suspected;
    whole.try_emplace(rank.replica, true).first->second &= good;
  }
  const bool any_whole =
      std::any_of(whole.begin(), whole.end(), [](const auto& replica) { return replica.second; });
  health.set_serving(any_whole && !draining_ && stop_reason_.empty());
  return health;
}

}  // namespace trireme
