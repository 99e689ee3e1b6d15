// SPDX-License-Identifier: Apache-2.0
#include "coordinator/rank_health.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace trireme {
namespace {

// A host's end takes several ranks; and a launcher that ends the job after a death was seen to take
// some seconds from its SIGTERM to its SIGKILL.
constexpr std::chrono::seconds kAftermath{5};
// A rank from elsewhere may claim to wait for very many; a line of the log is enough for a few.
constexpr int kMaxNamed = 8;
// And a rank's peers are few: more would be looked through at every judgement, and told to every
// client that watches.
constexpr int kMaxPeers = 1024;

bool waits(const RankRecord& rank) { return rank.beat.waiting_for_size() > 0; }

bool idles(const RankRecord& rank) {
  return rank.beat.operation() == OPERATION_IDLE && rank.beat.current() == 0;
}

std::string ranks_text(const google::protobuf::RepeatedField<int32_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (int i = 0; i < std::min(ranks.size(), kMaxNamed); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  }
  return text + (ranks.size() > kMaxNamed ? ", …" : "");
}

class Judge {
 public:
  Judge(std::span<const RankRecord> ranks, Clock::time_point now) : now_(now) {
    for (const RankRecord& rank : ranks) ranks_[rank.rank] = &rank;
  }

  Verdict of(const RankRecord& rank) const {
    using State = Verdict::State;
    if (rank.dead) return {State::kDead, rank.reason};
    if (rank.silent) {
      return {State::kSuspected,
              "silent: " + (rank.heard ? "no heartbeat for " + seconds_text(now_ - *rank.heard)
                                       : rank.reason)};
    }
    if (rank.replica < 0) return {State::kSpare, ""};
    if (rank.replica_lost) return {State::kAbandoned, ""};
    if (wedged(rank)) {
      return {State::kSuspected, "does not move: " + operation_of(rank.beat) + " for " +
                                     seconds_text(now_ - rank.moved) +
                                     ", without a new operation or CPU time"};
    }
    if (still(rank) && waits(rank) && !explained(rank)) {
      return {State::kSuspected,
              "stands still: it waits for " + ranks_text(rank.beat.waiting_for()) + " for " +
                  seconds_text(now_ - rank.moved) + ", and nobody there computes"};
    }
    return {State::kServing, ""};
  }

 private:
  bool still(const RankRecord& rank) const {
    return rank.heard && now_ - rank.moved >= kWedgedAfter;
  }
  bool wedged(const RankRecord& rank) const { return still(rank) && !idles(rank) && !waits(rank); }

  // Somebody on whom it waits, at however many hands, computes, is dead or in doubt for itself.
  bool explained(const RankRecord& rank) const {
    std::vector<int> seen{rank.rank};
    for (size_t next = 0; next < seen.size(); ++next) {
      const RankRecord& waiting = *ranks_.at(seen[next]);
      for (const int peer : waiting.beat.waiting_for()) {
        const auto found = ranks_.find(peer);
        if (found == ranks_.end()) continue;  // no rank of this job: explains nothing
        if (excuses(*found->second)) return true;
        if (std::find(seen.begin(), seen.end(), peer) == seen.end()) seen.push_back(peer);
      }
    }
    return false;
  }

  bool excuses(const RankRecord& peer) const {
    // Who has just come to rest may have sent what is waited for; the next heartbeats will tell.
    if (peer.dead || peer.silent || !still(peer)) return true;
    return !waits(peer) && !idles(peer);
  }

  const Clock::time_point now_;
  std::map<int, const RankRecord*> ranks_;
};

}  // namespace

void note_heartbeat(RankRecord& rank, const Heartbeat& beat, Clock::time_point now) {
  // Who waits or idles uses CPU time as well, to look whether something has come.
  const bool idle = beat.operation() == OPERATION_IDLE && beat.current() == 0;
  const bool computes = beat.waiting_for_size() == 0 && !idle;
  const bool moves = !rank.heard || beat.operations() != rank.beat.operations() ||
                     (computes && beat.cpu_us() != rank.beat.cpu_us());
  if (moves) rank.moved = now;
  rank.heard = now;
  rank.beat = beat;
  if (beat.waiting_for_size() > kMaxPeers) rank.beat.mutable_waiting_for()->Truncate(kMaxPeers);
}

std::vector<Verdict> judge(std::span<const RankRecord> ranks, Clock::time_point now) {
  const Judge court(ranks, now);
  std::vector<Verdict> verdicts;
  verdicts.reserve(ranks.size());
  for (const RankRecord& rank : ranks) verdicts.push_back(court.of(rank));
  return verdicts;
}

const char* name_of(Verdict::State state) {
  switch (state) {
    case Verdict::State::kServing: return "serving";
    case Verdict::State::kSuspected: return "suspected";
    case Verdict::State::kDead: return "dead";
    case Verdict::State::kAbandoned: return "abandoned";
    case Verdict::State::kSpare: break;
  }
  return "spare";
}

std::string name_of(const RankRecord& rank) {
  return "rank " + std::to_string(rank.rank) + " (host " + rank.host +
         (rank.replica < 0 ? ", spare)" : ", stage " + std::to_string(rank.stage) + ")");
}

std::string operation_of(const Heartbeat& beat) {
  const auto in_layer = [&](const std::string& name) {
    return beat.layer() > 0 ? "layer " + std::to_string(beat.layer() - 1) + " " + name : name;
  };
  switch (beat.operation()) {
    case OPERATION_IDLE: return beat.current() == 0 ? "idle" : "begin";
    case OPERATION_LOAD: return "load";
    case OPERATION_EMBED: return "embed";
    case OPERATION_ATTENTION: return in_layer("attention");
    case OPERATION_MLP: return in_layer("mlp");
    case OPERATION_ALL_REDUCE: return in_layer("all-reduce");
    case OPERATION_RECEIVE: return "receive activations";
    case OPERATION_SEND: return "send activations";
    case OPERATION_BROADCAST: return "spread activations";
    case OPERATION_HEAD: return "head";
    case OPERATION_GATHER: return "gather logits";
    case OPERATION_SAMPLE: return "sample";
    default: break;
  }
  return "operation " + std::to_string(beat.operation());
}

std::string doing(const RankRecord& rank, Clock::time_point now) {
  if (!rank.heard) return "not heard of yet";
  std::string text;
  if (rank.beat.current() != 0) {
    text = "in micro-batch " + std::to_string(rank.beat.current()) + ", ";
  }
  text += operation_of(rank.beat);
  if (waits(rank)) text += ", waiting for " + ranks_text(rank.beat.waiting_for());
  const auto since = std::chrono::microseconds(std::min<uint64_t>(rank.beat.operation_us(), 1e15));
  return text + ", for " + seconds_text(since) + " when last heard " +
         seconds_text(now - *rank.heard) + " ago";
}

std::string seconds_text(Clock::duration duration) {
  const double seconds = std::max(0.0, std::chrono::duration<double>(duration).count());
  char text[32];
  std::snprintf(text, sizeof text, seconds < 1 ? "%.2f s" : "%.1f s", seconds);
  return text;
}

bool follows_from(const RankRecord& first, Clock::duration since_first, const RankRecord& other) {
  if (first.rank == other.rank || since_first < kAftermath) return true;
  return first.replica >= 0 && first.replica == other.replica;
}

}  // namespace trireme
