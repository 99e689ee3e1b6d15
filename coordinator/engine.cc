// SPDX-License-Identifier: Apache-2.0
#include "coordinator/engine.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "kernels/base/brief_wait.h"
#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "topology/placement.h"

namespace trireme {
namespace {

double milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

int64_t tokens_of(const Request& request) {
  return std::ssize(request.prompt) + request.max_tokens;
}

int32_t vocab_rows(const Placement& placement) {
  int32_t rows = 0;
  for (const StageSpec& stage : placement.replicas(0).stages()) {
    for (const ShardSpec& shard : stage.shards()) rows = std::max(rows, shard.vocab().end());
  }
  return rows;
}

}  // namespace

Engine::Engine(const Topology& topology, const Placement& placement, Channel& channel,
               const EngineOptions& options)
    : channel_(channel),
      options_(options),
      context_(placement.context()),
      num_blocks_(placement.num_blocks()),
      block_size_(placement.block_size()),
      roster_(topology, placement, options.log),
      speeds_(placement.replicas_size()) {
  CHECK(placement.replicas_size() > 0, "the placement has no replica");
  if (options_.vocab_size == 0) options_.vocab_size = vocab_rows(placement);
  for (const ReplicaSpec& spec : placement.replicas()) {
    Replica& replica = replicas_.emplace_back();
    replica.index = static_cast<int>(replicas_.size()) - 1;
    replica.num_stages = spec.stages_size();
    SchedulerOptions& scheduler = replica.options;
    scheduler.num_stages = spec.stages_size();
    scheduler.num_blocks = num_blocks_of(placement, replica.index);
    scheduler.block_size = placement.block_size();
    scheduler.max_sequences = placement.max_sequences();
    scheduler.max_batch_tokens = placement.max_batch_tokens();
    scheduler.vocab_size = options_.vocab_size;
    num_blocks_ = std::min(num_blocks_, scheduler.num_blocks);
    replica.scheduler = std::make_unique<Scheduler>(scheduler);
  }
  num_alive_ = placement.replicas_size();
  name_ranks(topology, placement);
  publish();
  channel_.set_wake([doorbell = doorbell_] { doorbell->ring(); });
}

Engine::~Engine() { stop("the server stops"); }

void Engine::set_num_blocks(int replica, int32_t num_blocks) {
  CHECK(!thread_.joinable() && num_blocks > 0, "KV blocks are set before the engine starts");
  Replica& one = replicas_.at(static_cast<size_t>(replica));
  CHECK(one.scheduler != nullptr && one.scheduler->idle(), "a replica that works already");
  one.options.num_blocks = num_blocks;
  one.scheduler = std::make_unique<Scheduler>(one.options);
  num_blocks_ = std::min(num_blocks_, num_blocks);
  publish();
}

void Engine::start() {
  thread_ = std::thread([this] { loop(); });
}

void Engine::stop(const std::string& reason) {
  const std::lock_guard one_at_a_time(stop_mutex_);
  {
    const std::lock_guard lock(mutex_);
    if (!stop_reason_.empty()) return;
    stop_reason_ = reason.empty() ? "the server stops" : reason;
    health_changed_ = true;
  }
  stopping_ = true;
  doorbell_->ring();
  if (thread_.joinable()) thread_.join();

  // The loop has ended: from here on this is the engine's thread.
  const Clock::time_point now = Clock::now();
  take_inbox(now);
  while (!active_.empty()) fail(active_.begin()->first, Code::kUnavailable, stop_reason_, now);
  publish();
}

// The last output token is never computed, so it needs no place in the cache.
int32_t Engine::longest() const {
  return static_cast<int32_t>(std::min<int64_t>(context_, int64_t{num_blocks_} * block_size_ + 1));
}

void Engine::check_request(const Request& request) const {
  CHECK(request.sink != nullptr, "a request without a sink");
  const auto refuse = [](const std::string& why) {
    throw Error(Code::kInvalidArgument, "cannot take the request: " + why);
  };
  if (request.prompt.empty()) refuse("the prompt has no token; it needs at least one");
  if (request.max_tokens < 1) refuse("max_tokens is " + std::to_string(request.max_tokens));
  const auto num_prompt = static_cast<int64_t>(request.prompt.size());
  if (num_prompt + request.max_tokens > longest()) {
    refuse("prompt (" + std::to_string(num_prompt) + " tokens) and max_tokens (" +
           std::to_string(request.max_tokens) + ") exceed what is served, " +
           std::to_string(longest()) + " tokens; shorten the prompt or lower max_tokens");
  }
  for (const int32_t id : request.prompt) {
    if (id < 0 || id >= options_.vocab_size) {
      refuse("prompt token " + std::to_string(id) + " is outside the vocabulary of " +
             std::to_string(options_.vocab_size));
    }
  }
}

void Engine::submit(Request request) {
  std::vector<Request> one;
  one.push_back(std::move(request));
  submit(std::move(one));
}

void Engine::submit(std::vector<Request> answers) {
  CHECK(!answers.empty(), "a request for no answer");
  const std::string id = answers.front().id;
  for (const Request& answer : answers) {
    check_request(answer);
    CHECK(answer.id == id, "the answers to one request have different ids");
  }
  const auto count = static_cast<int32_t>(answers.size());
  {
    const std::lock_guard lock(mutex_);
    if (!stop_reason_.empty()) {
      throw Error(Code::kUnavailable, "cannot take the request: " + stop_reason_);
    }
    if (!drain_reason_.empty()) {
      throw Error(Code::kUnavailable,
                  "cannot take the request: " + drain_reason_ + "; ask another server");
    }
    if (num_alive_ == 0) {
      throw Error(Code::kUnavailable, "cannot take the request: " + lost_reason_);
    }
    if (ids_.contains(id)) {
      throw Error(Code::kAlreadyExists,
                  "cannot take the request: its id " + id + " is running already");
    }
    const int32_t num_queued = num_open_ - load_.running();
    if (num_queued + count > options_.max_queue) {
      const std::string wanted =
          count == 1 ? "" : " and it asks for " + std::to_string(count) + " answers";
      throw TryLater("cannot take the request: " + std::to_string(num_queued) +
                         " are queued, --max_queue allows " + std::to_string(options_.max_queue) +
                         wanted,
                     pace_.delay(num_queued + count - options_.max_queue));
    }
    is_idle_ = false;
    num_open_ += count;
    std::vector<uint64_t>& sequences = ids_[id];
    for (Request& answer : answers) {
      sequences.push_back(next_sequence_++);
      inbox_.emplace_back(sequences.back(), std::move(answer));
    }
  }
  doorbell_->ring();
}

void Engine::cancel(const std::string& id) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = ids_.find(id);
    if (found == ids_.end()) return;
    cancels_.insert(cancels_.end(), found->second.begin(), found->second.end());
  }
  doorbell_->ring();
}

void Engine::drain(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    drain_reason_ = reason.empty() ? "the server drains" : reason;
    health_changed_ = true;
  }
  doorbell_->ring();
}

bool Engine::wait_idle(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, timeout, [this] { return is_idle_; });
}

std::vector<std::string> Engine::open_requests() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> ids;
  ids.reserve(ids_.size());
  for (const auto& [id, sequences] : ids_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

v1::Load Engine::load() const {
  const std::lock_guard lock(mutex_);
  return load_;
}

std::string Engine::lost_reason() const {
  const std::lock_guard lock(mutex_);
  return lost_reason_;
}

void Engine::Doorbell::ring() {
  {
    const std::lock_guard lock(mutex);
    rung = true;
  }
  condition.notify_one();
}

void Engine::loop() {
  while (!stopping_) {
    // Before looking: what comes after the look rings again.
    doorbell_->rung.exchange(false);
    if (!tick(Clock::now())) wait();
  }
}

void Engine::wait() {
  const Clock::time_point begin = Clock::now();
  if (spin_pays_ && !at_rest_) {
    BriefWait brief;
    while (brief.lasted() < options_.spin) {
      if (doorbell_->rung) return;
      brief.pause();
    }
  }
  const auto rung = [this] { return doorbell_->rung.load(); };
  std::unique_lock lock(doorbell_->mutex);
  std::optional<Clock::time_point> until = explained_by_;
  if (!deadlines_.empty())
    until = std::min(until.value_or(Clock::time_point::max()), deadlines_.begin()->first);
  if (until) {
    doorbell_->condition.wait_until(lock, *until, rung);
  } else {
    doorbell_->condition.wait(lock, rung);
  }
  spin_pays_ = Clock::now() - begin < options_.spin;
}

bool Engine::tick(Clock::time_point now) {
  bool worked = take_inbox(now);
  worked = expire_deadlines(now) || worked;
  const bool heard = take_events(now);
  worked = dispatch(now) || worked;
  // To spin after a heartbeat would be to wait for nothing.
  if (worked || heard) at_rest_ = !worked && only_beats_;
  if (worked || heard) publish();
  return worked || heard;
}

bool Engine::take_inbox(Clock::time_point now) {
  std::vector<std::pair<uint64_t, Request>> inbox;
  std::vector<uint64_t> cancels;
  bool health_changed = false;
  {
    const std::lock_guard lock(mutex_);
    inbox.swap(inbox_);
    cancels.swap(cancels_);
    health_changed = health_changed_;
  }
  for (auto& [sequence, request] : inbox) {
    Active& active = active_[sequence];
    active.request = std::move(request);
    active.entered = now;
    if (active.request.deadline) deadlines_.emplace(*active.request.deadline, sequence);
    queue_.insert(sequence);
  }
  while (num_alive_ == 0 && !queue_.empty()) {
    fail(*queue_.begin(), Code::kUnavailable, lost_reason(), now);
  }
  for (const uint64_t sequence : cancels) {
    if (active_.contains(sequence)) log_end(close(sequence), "cancelled", now);
  }
  return !inbox.empty() || !cancels.empty() || health_changed;
}

// Requests wait here, in one line for all replicas, and each goes to a replica only when that has a
// place for it in its next micro-batch: so none waits behind a slow replica while another has room.
void Engine::hand_over() {
  while (!queue_.empty()) {
    const uint64_t sequence = *queue_.begin();
    Active& active = active_.at(sequence);
    Replica* const replica = best_replica(active.request);
    if (replica == nullptr) return;
    queue_.erase(sequence);
    active.replica = replica;
    active.outstanding = tokens_of(active.request);
    replica->outstanding += active.outstanding;
    replica->scheduler->add(sequence, active.request.prompt, active.request.sampling);
  }
}

// The one that would be done with it first; null: none can take it now.
Engine::Replica* Engine::best_replica(const Request& request) {
  Replica* best = nullptr;
  double least = 0;
  for (Replica& replica : replicas_) {
    if (!replica.scheduler || !replica.scheduler->takes(std::ssize(request.prompt))) continue;
    const double time = static_cast<double>(replica.outstanding + tokens_of(request)) *
                        speeds_.slowness(replica.index);
    if (best != nullptr && time >= least) continue;
    best = &replica;
    least = time;
  }
  return best;
}

bool Engine::expire_deadlines(Clock::time_point now) {
  bool expired = false;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t sequence = deadlines_.begin()->second;
    const Active& active = active_.at(sequence);
    const std::string why = "its deadline has passed after " + std::to_string(active.num_output) +
                            " of at most " + std::to_string(active.request.max_tokens) +
                            " tokens; give it more time";
    fail(sequence, Code::kDeadlineExceeded, why, now);
    expired = true;
  }
  return expired;
}

bool Engine::dispatch(Clock::time_point now) {
  bool dispatched = false;
  for (bool more = true; more;) {
    more = false;
    hand_over();
    for (Replica& replica : replicas_) {
      std::optional<MicroBatch> batch;
      if (replica.scheduler) batch = replica.scheduler->next();
      if (!batch) continue;
      send(replica, std::move(*batch), now);
      more = dispatched = true;
    }
  }
  return dispatched;
}

void Engine::send(Replica& replica, MicroBatch batch, Clock::time_point now) {
  int32_t num_tokens = 0;
  for (const SequenceChunk& chunk : batch.chunks()) {
    num_tokens += chunk.token_ids_size();
    Active& active = active_.at(chunk.sequence());
    if (active.started) continue;
    active.started = now;
    prompt_tokens_ += active.request.prompt.size();
  }
  replica.in_flight.push_back({now, num_tokens});
  if (options_.drift) options_.drift->sent(replica.index, batch);
  ToWorker message;
  *message.mutable_micro_batch() = std::move(batch);
  for (const int rank : replica.ranks) channel_.send(rank, message);
}

void Engine::deliver(uint64_t sequence, const SampledToken& token, Clock::time_point now) {
  Active& active = active_.at(sequence);
  if (!active.first_token) active.first_token = now;
  ++active.num_output;
  ++output_tokens_;
  // The first token also tells that the prompt is done.
  const int64_t done =
      1 + (active.num_output == 1 ? static_cast<int64_t>(active.request.prompt.size()) : 0);
  active.outstanding -= done;
  active.replica->outstanding -= done;

  OutputToken output;
  output.id = token.token();
  output.logprobs.reserve(token.logprobs_size());
  for (const TokenLogprob& logprob : token.logprobs()) {
    output.logprobs.push_back({logprob.id(), logprob.logprob()});
  }
  const bool wants_more = active.request.sink->on_token(output);
  const std::vector<int32_t>& stop_ids = active.request.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), output.id) != stop_ids.end()) {
    finish(sequence, FinishReason::kStop, output.id, now);
  } else if (!wants_more) {
    finish(sequence, FinishReason::kStop, std::nullopt, now);
  } else if (active.num_output == active.request.max_tokens) {
    finish(sequence, FinishReason::kLength, std::nullopt, now);
  }
}

Engine::Active Engine::close(uint64_t sequence) {
  Active active = std::move(active_.extract(sequence).mapped());
  if (active.replica != nullptr) {
    active.replica->outstanding -= active.outstanding;
    if (active.replica->scheduler) active.replica->scheduler->drop(sequence);
  } else {
    queue_.erase(sequence);
  }
  if (active.request.deadline) deadlines_.erase({*active.request.deadline, sequence});
  const std::lock_guard lock(mutex_);
  const auto open = ids_.find(active.request.id);
  std::erase(open->second, sequence);
  if (open->second.empty()) ids_.erase(open);
  --num_open_;
  return active;
}

void Engine::finish(uint64_t sequence, FinishReason reason, std::optional<int32_t> stop_id,
                    Clock::time_point now) {
  const Active active = close(sequence);
  {
    const std::lock_guard lock(mutex_);
    pace_.ended(now);
  }
  log_end(active, reason == FinishReason::kStop ? "stop" : "length", now);
  active.request.sink->on_finished(reason, stop_id);
}

void Engine::fail(uint64_t sequence, Code code, const std::string& why, Clock::time_point now,
                  const std::string& remark) {
  std::vector<uint64_t> answers;
  {
    const std::lock_guard lock(mutex_);
    answers = ids_.at(active_.at(sequence).request.id);
  }
  for (const uint64_t answer : answers) {
    const Active active = close(answer);
    log_end(active, code_name(code) + remark, now);
    active.request.sink->on_error(code, "cannot finish the request: " + why);
  }
}

void Engine::log_end(const Active& active, const std::string& end, Clock::time_point now) const {
  if (!options_.log) return;
  const Clock::time_point first = active.first_token.value_or(now);
  const double rest_ms = milliseconds(now - first);
  const double rate = rest_ms > 0 ? (active.num_output - 1) * 1e3 / rest_ms : 0;
  char numbers[160];
  std::snprintf(numbers, sizeof numbers,
                "%zu + %d tokens, queued %.1f ms, first token %.1f ms, %.1f tokens/s",
                active.request.prompt.size(), active.num_output,
                milliseconds(active.started.value_or(now) - active.entered),
                milliseconds(first - active.entered), active.num_output > 1 ? rate : 0.0);
  const int32_t index = active.request.index;
  const std::string name =
      active.request.id + (index == 0 ? "" : ", answer " + std::to_string(index));
  log_info("request " + name + ": " + end + ", " + numbers);
}

void Engine::publish() {
  v1::Load load;
  load.set_max_queue(options_.max_queue);
  load.set_prompt_tokens(prompt_tokens_);
  load.set_output_tokens(output_tokens_);
  for (const Replica& replica : replicas_) {
    if (!replica.scheduler) continue;
    load.set_running(load.running() + replica.scheduler->num_running());
    load.set_blocks_free(load.blocks_free() + replica.scheduler->num_blocks_free());
    load.set_blocks_total(load.blocks_total() + replica.options.num_blocks);
  }
  bool health_changed = false;
  {
    const std::lock_guard lock(mutex_);
    load.set_waiting(num_open_ - load.running());
    load_ = load;
    is_idle_ = ids_.empty();
    std::swap(health_changed, health_changed_);
  }
  idle_.notify_all();
  if (health_changed && health_listener_) health_listener_();
}

}  // namespace trireme
