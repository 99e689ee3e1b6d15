// SPDX-License-Identifier: Apache-2.0
#include "tests/simulation/simulated_replica.h"

#include <algorithm>
#include <utility>

namespace trireme {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64's last step
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t chain(uint64_t before, int32_t token, int32_t position) {
  return mix(before +
             mix((uint64_t{static_cast<uint32_t>(position)} << 32) + static_cast<uint32_t>(token)));
}

int32_t draw_token(uint64_t chain, uint64_t seed, int32_t vocab_size) {
  return static_cast<int32_t>(mix(chain ^ mix(seed)) % static_cast<uint64_t>(vocab_size));
}

SimulatedReplica::SimulatedReplica(const ReplicaSetting& setting, Timeline& timeline,
                                   Random& random, SimulatedChannel& channel,
                                   std::function<void(const std::string&)> violation)
    : setting_(setting),
      timeline_(timeline),
      random_(random),
      channel_(channel),
      violation_(std::move(violation)),
      histories_(setting.placement.max_sequences()) {
  for (const StageSpec& spec : setting.placement.replicas(setting.index).stages()) {
    Stage& stage = stages_.emplace_back();
    for (const ShardSpec& shard : spec.shards()) {
      stage.ranks.push_back(shard.rank());
      ranks_.push_back(shard.rank());
    }
  }
  cache_.resize(static_cast<size_t>(setting.placement.num_blocks()) *
                setting.placement.block_size());
}

void SimulatedReplica::fail(const std::string& what) {
  violation_("replica " + std::to_string(setting_.index) + ": " + what);
}

void SimulatedReplica::receive(int rank, const ToWorker& message) {
  if (closed_.contains(rank)) return;
  switch (message.kind_case()) {
    case ToWorker::kMicroBatch: receive_batch(rank, message.micro_batch()); return;
    case ToWorker::kAbandon:
      ++num_abandons_[rank];
      halted_ = true;
      return;
    default: fail("rank " + std::to_string(rank) + " got a message of another kind");
  }
}

void SimulatedReplica::receive_batch(int rank, const MicroBatch& batch) {
  if (num_abandons_[rank] > 0) return fail("a micro-batch after Abandon");
  const size_t index = num_received_[rank]++;
  if (index == batches_.size()) {
    if (!batches_.empty() && batch.id() <= batches_.back().id()) fail("ids do not ascend");
    batches_.push_back(batch);
    if (batches_.size() - num_results_sent_ > stages_.size()) {
      fail("more micro-batches in flight than stages");
    }
  } else if (batches_[index].SerializeAsString() != batch.SerializeAsString()) {
    fail("ranks got different micro-batches, or in different orders");
  }
  for (size_t stage = 0; stage < stages_.size(); ++stage) try_start(stage);
}

void SimulatedReplica::try_start(size_t stage) {
  Stage& self = stages_[stage];
  const size_t index = self.num_done;
  if (halted_ || self.busy) return;
  if (stage > 0 && stages_[stage - 1].num_done <= index) return;
  for (const int rank : self.ranks) {
    if (num_received_[rank] <= index) return;
  }
  self.busy = true;
  // Every stage has the same cache and the same order, so the first one stands for all.
  if (stage == 0) results_.push_back(compute(batches_[index]));
  int32_t num_tokens = 0;
  for (const SequenceChunk& chunk : batches_[index].chunks()) num_tokens += chunk.token_ids_size();
  timeline_.after(setting_.stage_time(num_tokens), [this, stage] { finish(stage); });
}

void SimulatedReplica::finish(size_t stage) {
  if (halted_) return;
  stages_[stage].busy = false;
  const size_t index = stages_[stage].num_done++;
  if (stage + 1 == stages_.size()) {
    send_result(index);
  } else {
    try_start(stage + 1);
  }
  try_start(stage);
}

void SimulatedReplica::send_result(size_t index) {
  ++num_results_sent_;
  for (const SequenceChunk& chunk : batches_[index].chunks()) {
    sequences_in_flight_.erase(chunk.sequence());
    for (const int32_t block : chunk.block_table()) blocks_in_flight_.erase(block);
  }
  const int reporter = stages_.back().ranks.front();
  FromWorker message;
  *message.mutable_result() = results_[index];
  if (fault_ != Fault::kNone) return send_corrupt(reporter, std::move(message));
  channel_.report({reporter, ChannelEvent::Kind::kMessage, std::move(message), ""});
}

void SimulatedReplica::send_corrupt(int reporter, FromWorker message) {
  MicroBatchResult& result = *message.mutable_result();
  int sender = reporter;
  // A fault that this result has no place for becomes one that always has.
  const bool needs_token = fault_ == Fault::kWrongToken || fault_ == Fault::kWrongSequence;
  if ((needs_token && result.tokens().empty()) ||
      (fault_ == Fault::kWrongRank && ranks_.size() == 1)) {
    fault_ = Fault::kWrongBatch;
  }
  switch (fault_) {
    case Fault::kNone: break;
    case Fault::kWrongBatch: result.set_id(result.id() + (random_.chance(50) ? 1 : -1)); break;
    case Fault::kWrongToken:
      result.mutable_tokens(0)->set_token(random_.chance(50) ? -1 : setting_.vocab_size);
      break;
    case Fault::kTooManyTokens: result.add_tokens(); break;
    case Fault::kWrongSequence:
      result.mutable_tokens(0)->set_sequence(result.tokens(0).sequence() + 1000);
      break;
    case Fault::kWrongRank: sender = ranks_[reporter == ranks_[0] ? 1 : 0]; break;
    case Fault::kWrongKind: message.mutable_ready(); break;
  }
  fault_ = Fault::kNone;
  halted_ = true;  // as a rank that has gone wild: nothing after this matters
  fault_sent_(sender,
              channel_.report({sender, ChannelEvent::Kind::kMessage, std::move(message), ""}));
}

MicroBatchResult SimulatedReplica::compute(const MicroBatch& batch) {
  int32_t num_tokens = 0;
  MicroBatchResult result;
  result.set_id(batch.id());
  for (const SequenceChunk& chunk : batch.chunks()) {
    num_tokens += chunk.token_ids_size();
    if (!sequences_in_flight_.insert(chunk.sequence()).second) {
      fail("sequence " + std::to_string(chunk.sequence()) + " is in flight twice");
    }
    if (check_table(chunk)) compute_chunk(chunk, result);
  }
  try {
    histories_.follow(batch);
    for (const SequenceChunk& chunk : batch.chunks()) check_history(chunk);
  } catch (const Error& error) {
    fail(error.what());
  }
  if (num_tokens == 0) fail("an empty micro-batch");
  if (num_tokens > setting_.placement.max_batch_tokens()) fail("more tokens than the budget");
  if (batch.chunks_size() > setting_.placement.max_sequences()) fail("more than max_sequences");
  return result;
}

bool SimulatedReplica::check_table(const SequenceChunk& chunk) {
  const std::string who = "sequence " + std::to_string(chunk.sequence());
  const int32_t size = setting_.placement.block_size();
  const int32_t end = chunk.position() + chunk.token_ids_size();
  if (chunk.position() < 0 || chunk.token_ids().empty() ||
      chunk.block_table_size() != (end + size - 1) / size) {
    fail(who + " has " + std::to_string(chunk.block_table_size()) + " blocks for " +
         std::to_string(end) + " positions");
    return false;
  }
  for (const int32_t block : chunk.block_table()) {
    if (block < 0 || block >= setting_.placement.num_blocks()) {
      fail(who + " has block " + std::to_string(block));
      return false;
    }
    if (!blocks_in_flight_.emplace(block, chunk.sequence()).second) {
      fail(who + " shares block " + std::to_string(block));
    }
  }
  return true;
}

SimulatedReplica::Slot& SimulatedReplica::slot(const SequenceChunk& chunk, int32_t position) {
  const int32_t size = setting_.placement.block_size();
  return cache_[static_cast<size_t>(chunk.block_table(position / size)) * size + position % size];
}

void SimulatedReplica::compute_chunk(const SequenceChunk& chunk, MicroBatchResult& result) {
  if (chunk.position() == 0) {
    out_of_order_ |= !begun_.empty() && chunk.sequence() < *begun_.rbegin() &&
                     !begun_.contains(chunk.sequence());
    num_restarts_ += begun_.insert(chunk.sequence()).second ? 0 : 1;
  }
  uint64_t value = kChainStart;
  for (int32_t position = 0; position < chunk.position(); ++position) {
    const Slot& written = slot(chunk, position);
    value = chain(value, written.token, position);
    if (written.sequence != chunk.sequence() || written.position != position ||
        written.chain != value) {
      return fail("sequence " + std::to_string(chunk.sequence()) + " at position " +
                  std::to_string(chunk.position()) + " reads position " + std::to_string(position) +
                  ", which holds another's");
    }
  }
  int32_t position = chunk.position();
  for (const int32_t token : chunk.token_ids()) {
    value = chain(value, token, position);
    slot(chunk, position) = {chunk.sequence(), position, token, value};
    ++position;
  }
  if (!chunk.sample()) return;
  SampledToken& token = *result.add_tokens();
  token.set_sequence(chunk.sequence());
  token.set_token(draw_token(value, chunk.draw().seed(), setting_.vocab_size));
  for (int32_t i = 0; i < chunk.draw().logprobs(); ++i) token.add_logprobs()->set_id(i);
}

// What penalties count is what stands in the cache, however often it was computed.
void SimulatedReplica::check_history(const SequenceChunk& chunk) {
  const auto ids = histories_.of(chunk.sequence());
  const bool penalties = chunk.draw().presence_penalty() != 0;
  const int32_t end = penalties ? chunk.position() + chunk.token_ids_size() : 0;
  bool same = ids.size() == static_cast<size_t>(end);
  for (int32_t position = 0; same && position < end; ++position) {
    same = ids[static_cast<size_t>(position)] == slot(chunk, position).token;
  }
  if (!same) fail("sequence " + std::to_string(chunk.sequence()) + " has another history");
}

Clock::time_point SimulatedReplica::close(int rank, const std::string& reason) {
  closed_.insert(rank);
  halted_ = true;
  return channel_.report({rank, ChannelEvent::Kind::kClosed, {}, reason});
}

Clock::time_point SimulatedReplica::report_failure(int rank, Code code,
                                                   const std::string& message) {
  halted_ = true;
  FromWorker failed;
  failed.mutable_failed()->set_code(static_cast<int32_t>(code));
  failed.mutable_failed()->set_message(message);
  return channel_.report({rank, ChannelEvent::Kind::kMessage, std::move(failed), ""});
}

void SimulatedReplica::corrupt_next(Fault fault, std::function<void(int, Clock::time_point)> sent) {
  fault_ = fault;
  fault_sent_ = std::move(sent);
}

void SimulatedReplica::check_end(bool lost) {
  for (const int rank : ranks_) {
    if (closed_.contains(rank)) continue;
    if (num_abandons_[rank] != (lost ? 1 : 0)) {
      fail("rank " + std::to_string(rank) + " got " + std::to_string(num_abandons_[rank]) +
           " Abandons");
    }
  }
}

}  // namespace trireme
