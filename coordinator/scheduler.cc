// SPDX-License-Identifier: Apache-2.0
#include "coordinator/scheduler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

bool older(const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }

template <typename List>
void insert_by_age(List& list, Sequence* sequence) {
  list.insert(std::upper_bound(list.begin(), list.end(), sequence, older), sequence);
}

template <typename List>
void remove(List& list, const Sequence* sequence) {
  const auto place = std::find(list.begin(), list.end(), sequence);
  if (place != list.end()) list.erase(place);
}

bool has_penalties(const SamplingParams& sampling) {
  return sampling.repetition_penalty != 1 || sampling.frequency_penalty != 0 ||
         sampling.presence_penalty != 0;
}

// How the token at position `end` is to be drawn.
void describe_draw(const Sequence& sequence, int32_t end, DrawSpec& draw) {
  const SamplingParams& sampling = sequence.sampling;
  draw.set_temperature(sampling.temperature);
  draw.set_top_p(sampling.top_p);
  draw.set_top_k(sampling.top_k);
  draw.set_min_p(sampling.min_p);
  draw.set_seed(sampling.seed);
  draw.set_logprobs(sampling.logprobs);
  if (has_penalties(sampling)) {
    draw.set_repetition_penalty(sampling.repetition_penalty);
    draw.set_frequency_penalty(sampling.frequency_penalty);
    draw.set_presence_penalty(sampling.presence_penalty);
    draw.set_num_prompt(sequence.num_prompt);
  }
  for (const auto& [id, bias] : sampling.logit_bias) {
    draw.add_bias_ids(id);
    draw.add_biases(bias);
  }
  if (end - sequence.num_prompt < sampling.min_tokens) {
    draw.mutable_banned_ids()->Assign(sampling.banned_ids.begin(), sampling.banned_ids.end());
  }
}

[[noreturn]] void refuse(const MicroBatchResult& result, const std::string& why) {
  throw Error(Code::kInternal,
              "cannot use the result of micro-batch " + std::to_string(result.id()) + ": " + why);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), blocks_(options.num_blocks) {
  CHECK(options.num_stages > 0 && options.block_size > 0 && options.max_sequences > 0 &&
            options.max_batch_tokens > 0 && options.vocab_size > 0,
        "scheduler options must be positive");
}

int32_t Scheduler::blocks_for(int64_t num_positions) const {
  return static_cast<int32_t>((num_positions + options_.block_size - 1) / options_.block_size);
}

bool Scheduler::fits(int64_t num_positions) const {
  return num_positions <= int64_t{options_.num_blocks} * options_.block_size;
}

void Scheduler::add(uint64_t sequence, std::vector<int32_t> prompt,
                    const SamplingParams& sampling) {
  CHECK(!prompt.empty() && fits(static_cast<int64_t>(prompt.size())),
        "a prompt of " + std::to_string(prompt.size()) + " tokens cannot run");
  const auto [place, is_new] = sequences_.try_emplace(sequence);
  CHECK(is_new, "sequence " + std::to_string(sequence) + " is there already");
  Sequence& added = place->second;
  added.id = sequence;
  added.arrival = next_arrival_++;
  added.num_prompt = static_cast<int32_t>(prompt.size());
  added.tokens = std::move(prompt);
  added.sampling = sampling;
  waiting_.push_back(&added);
}

bool Scheduler::takes(int64_t num_prompt) const {
  const int32_t num_sequences = num_running() + num_waiting();
  if (num_sequences >= options_.max_sequences) return false;
  // As admit() will see it when those that wait have been admitted.
  int64_t needed = blocks_for(num_prompt);
  int64_t prompts = 0;  // tokens
  for (const Sequence* sequence : waiting_) {
    needed += blocks_for(static_cast<int64_t>(sequence->tokens.size()));
    prompts += sequence->num_missing();
  }
  if (needed > blocks_.num_free() - num_sequences) return false;

  for (const Sequence* sequence : running_) {
    const bool prompt = !sequence->in_flight && sequence->num_missing() > 1;
    prompts += prompt ? sequence->num_missing() : 0;
  }
  auto decodes = static_cast<int32_t>(ready_.size());
  if (num_in_flight() == options_.num_stages) {
    // The oldest one comes back before there is a next.
    for (const Part& part : in_flight_.front().parts) {
      if (part.sequence->dropped) continue;
      decodes += part.samples ? 1 : 0;
      prompts += part.samples ? 0 : part.sequence->num_missing();
    }
  }
  return std::min(decodes, decode_share()) + prompts < options_.max_batch_tokens;
}

void Scheduler::drop(uint64_t sequence) {
  const auto place = sequences_.find(sequence);
  if (place == sequences_.end() || place->second.dropped) return;
  Sequence& dropped = place->second;
  remove(waiting_, &dropped);
  remove(running_, &dropped);
  remove(ready_, &dropped);
  release_history(dropped);
  if (dropped.in_flight) {
    dropped.dropped = true;
    return;
  }
  blocks_.release(dropped.blocks);
  sequences_.erase(place);
}

std::optional<MicroBatch> Scheduler::next() {
  if (num_in_flight() >= options_.num_stages) return std::nullopt;
  Draft draft;
  draft.tokens_left = options_.max_batch_tokens;
  take_decodes(draft);
  take_prompts(draft);
  admit(draft);
  if (draft.parts.empty()) return std::nullopt;
  draft.batch.set_id(next_batch_++);
  draft.batch.mutable_released()->Assign(released_.begin(), released_.end());
  released_.clear();
  in_flight_.push_back({draft.batch.id(), std::move(draft.parts)});
  return std::move(draft.batch);
}

int32_t Scheduler::decode_share() const {
  // Those in flight count: they come back, and the share of each micro-batch then stays the same.
  const auto decoding = static_cast<int32_t>(
      std::count_if(running_.begin(), running_.end(),
                    [](const Sequence* sequence) { return sequence->num_missing() <= 1; }));
  return (decoding + options_.num_stages - 1) / options_.num_stages;
}

void Scheduler::take_decodes(Draft& draft) {
  int32_t share = decode_share();
  const std::vector<Sequence*> candidates =
      ready_;  // make_room() takes the preempted out of ready_
  for (Sequence* sequence : candidates) {
    if (share == 0 || draft.tokens_left == 0) break;
    const bool preempted = sequence->blocks.empty();
    if (preempted || !make_room(*sequence)) continue;
    append_chunk(draft, *sequence, 1);
    --share;
  }
  std::erase_if(ready_, [](const Sequence* sequence) { return sequence->in_flight; });
}

void Scheduler::take_prompts(Draft& draft) {
  for (Sequence* sequence : running_) {
    if (draft.tokens_left == 0) return;
    if (sequence->in_flight || sequence->num_missing() <= 1) continue;
    append_chunk(draft, *sequence, std::min(sequence->num_missing(), draft.tokens_left));
  }
}

void Scheduler::admit(Draft& draft) {
  while (!waiting_.empty() && draft.tokens_left > 0 && num_running() < options_.max_sequences) {
    Sequence& sequence = *waiting_.front();
    const int32_t needed = blocks_for(static_cast<int64_t>(sequence.tokens.size()));
    // One block more for each that runs: else they would soon preempt the newcomer, and its prompt
    // would have been computed for nothing.
    if (!running_.empty() && needed > blocks_.num_free() - num_running()) return;
    // Fails although nothing runs while dropped sequences in flight still hold blocks.
    if (!blocks_.grow(sequence.blocks, needed)) return;
    waiting_.pop_front();
    insert_by_age(running_, &sequence);
    append_chunk(draft, sequence, std::min(sequence.num_missing(), draft.tokens_left));
  }
}

void Scheduler::append_chunk(Draft& draft, Sequence& sequence, int32_t num_tokens) {
  SequenceChunk& chunk = *draft.batch.add_chunks();
  const int32_t begin = sequence.num_computed;
  const int32_t end = begin + num_tokens;
  chunk.set_sequence(sequence.id);
  chunk.set_position(begin);
  chunk.mutable_token_ids()->Add(sequence.tokens.begin() + begin, sequence.tokens.begin() + end);
  chunk.mutable_block_table()->Add(sequence.blocks.begin(),
                                   sequence.blocks.begin() + blocks_for(end));
  chunk.set_sample(num_tokens == sequence.num_missing());
  describe_draw(sequence, end, *chunk.mutable_draw());

  sequence.num_computed = end;
  sequence.in_flight = true;
  draft.tokens_left -= num_tokens;
  draft.parts.push_back({&sequence, chunk.sample()});
}

bool Scheduler::make_room(Sequence& sequence) {
  const int32_t needed = blocks_for(int64_t{sequence.num_computed} + 1);
  while (!blocks_.grow(sequence.blocks, needed)) {
    // What is in flight writes to its blocks: pass over it, a younger one will be back soon.
    const auto youngest = std::find_if(running_.rbegin(), running_.rend(),
                                       [](const Sequence* other) { return !other->in_flight; });
    if (youngest == running_.rend() || !older(&sequence, *youngest)) return false;
    preempt(**youngest);
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  remove(running_, &sequence);
  remove(ready_, &sequence);
  blocks_.release(sequence.blocks);
  release_history(sequence);
  sequence.num_computed = 0;
  insert_by_age(waiting_, &sequence);
}

// What does not run has no history on the reporter, so it has no more of them than sequences run. A
// sequence that comes back begins at position 0.
void Scheduler::release_history(const Sequence& sequence) {
  const bool begun = sequence.num_computed > 0;
  if (begun && has_penalties(sequence.sampling)) released_.push_back(sequence.id);
}

std::vector<Scheduler::Drawn> Scheduler::complete(const MicroBatchResult& result) {
  if (in_flight_.empty()) refuse(result, "none is in flight");
  check_result(in_flight_.front(), result);
  const InFlight done = std::move(in_flight_.front());
  in_flight_.pop_front();

  std::vector<Drawn> drawn;
  int next_token = 0;
  for (const Part& part : done.parts) {
    Sequence& sequence = *part.sequence;
    const SampledToken* token = part.samples ? &result.tokens(next_token++) : nullptr;
    sequence.in_flight = false;
    if (sequence.dropped) {
      blocks_.release(sequence.blocks);
      sequences_.erase(sequence.id);
      continue;
    }
    if (token != nullptr) {
      sequence.tokens.push_back(token->token());
      drawn.push_back({sequence.id, token});
    }
    if (sequence.num_missing() == 1) ready_.push_back(&sequence);
  }
  return drawn;
}

void Scheduler::check_result(const InFlight& expected, const MicroBatchResult& result) const {
  if (result.id() != expected.id) {
    refuse(result, "micro-batch " + std::to_string(expected.id) + " is the next to end");
  }
  const auto num_drawn = std::count_if(expected.parts.begin(), expected.parts.end(),
                                       [](const Part& part) { return part.samples; });
  if (result.tokens_size() != num_drawn) {
    refuse(result, "it has " + std::to_string(result.tokens_size()) + " tokens, " +
                       std::to_string(num_drawn) + " were asked for");
  }
  const auto check_id = [&](int32_t id) {
    if (id >= 0 && id < options_.vocab_size) return;
    refuse(result, "token " + std::to_string(id) + " is outside the vocabulary of " +
                       std::to_string(options_.vocab_size));
  };
  int index = 0;
  for (const Part& part : expected.parts) {
    if (!part.samples) continue;
    const SampledToken& token = result.tokens(index++);
    if (token.sequence() != part.sequence->id) {
      refuse(result, "it has a token of sequence " + std::to_string(token.sequence()) +
                         " where sequence " + std::to_string(part.sequence->id) + " has its place");
    }
    check_id(token.token());
    if (token.logprobs_size() > part.sequence->sampling.logprobs) {
      refuse(result, "it has " + std::to_string(token.logprobs_size()) + " logprobs, at most " +
                         std::to_string(part.sequence->sampling.logprobs) + " were asked for");
    }
    for (const TokenLogprob& logprob : token.logprobs()) check_id(logprob.id());
  }
}

}  // namespace trireme
