// SPDX-License-Identifier: Apache-2.0
#include "tests/simulation/scenario.h"

#include <algorithm>
#include <utility>

namespace trireme {
namespace {

using std::chrono::microseconds;

// Far beyond what any of them needs: a job that is not done by then goes round in circles.
constexpr int64_t kMaxSteps = 2'000'000;
constexpr int kMaxTurnsAtOnce = 10'000;

}  // namespace

// One client: what it asks, what it got, and what it must have got.
class Scenario::Client : public RequestSink, public std::enable_shared_from_this<Client> {
 public:
  enum class End { kNone, kRefused, kStop, kLength, kError };

  Client(Scenario& scenario, int index) : scenario_(scenario), index_(index) {}

  bool on_token(const OutputToken& token) override {
    expect_open("a token");
    got.push_back(token.id);
    if (static_cast<int32_t>(token.logprobs.size()) != request.sampling.logprobs) {
      scenario_.violation(name() + " got another number of logprobs");
    }
    return got.size() < enough;
  }
  void on_finished(FinishReason reason, std::optional<int32_t> stop) override {
    expect_open("its end");
    end = reason == FinishReason::kStop ? End::kStop : End::kLength;
    stop_id = stop;
  }
  void on_error(Code code, const std::string& message) override {
    expect_open("an error");
    end = End::kError;
    error_code = code;
    error = message;
    ended = scenario_.timeline_.now();
  }

  std::string name() const { return "client " + std::to_string(index_); }

  void submit(Engine& engine) {
    Request asked = request;
    asked.sink = shared_from_this();  // not in `request`, which would own itself
    try {
      engine.submit(std::move(asked));
    } catch (const Error& refusal) {
      end = End::kRefused;
      error_code = refusal.code();
    }
  }

  void cancel(Engine& engine) {
    if (end != End::kNone) return;
    cancelled = true;
    engine.cancel(request.id);
  }

  // The answer of the same request alone, to its last possible token.
  std::vector<int32_t> alone(int32_t vocab_size) const {
    uint64_t value = kChainStart;
    int32_t position = 0;
    for (const int32_t token : request.prompt) value = chain(value, token, position++);
    std::vector<int32_t> answer;
    while (static_cast<int32_t>(answer.size()) < request.max_tokens) {
      answer.push_back(draw_token(value, request.sampling.seed, vocab_size));
      value = chain(value, answer.back(), position++);
    }
    return answer;
  }

  Request request;
  size_t enough = SIZE_MAX;  // tokens after which the sink has what it wants
  std::vector<int32_t> got;
  End end = End::kNone;
  bool cancelled = false;
  std::optional<int32_t> stop_id;
  Code error_code = Code::kInternal;
  std::string error;
  Clock::time_point ended;

 private:
  void expect_open(const std::string& what) {
    if (end != End::kNone) scenario_.violation(name() + " got " + what + " after its end");
    if (cancelled) scenario_.violation(name() + " got " + what + " after it had cancelled");
  }

  Scenario& scenario_;
  int index_;
};

Scenario::Scenario(uint64_t seed) : random_(seed) {
  draw_job();
  channel_ =
      std::make_unique<SimulatedChannel>(timeline_, random_, random_.up_to(microseconds(400)));
  for (int index = 0; index < placement_.replicas_size(); ++index) {
    // Some replicas are many times slower than others, by the micro-batch or by the token.
    const microseconds batch_time{random_.between(1, 3000)};
    const microseconds token_time{random_.chance(50) ? 0 : random_.between(1, 100)};
    const ReplicaSetting setting{placement_, index, options_.vocab_size,
                                 [this, batch_time, token_time](int32_t tokens) {
                                   return random_.up_to(batch_time) + tokens * token_time;
                                 }};
    replicas_.push_back(
        std::make_unique<SimulatedReplica>(setting, timeline_, random_, *channel_,
                                           [this](const std::string& what) { violation(what); }));
  }
  channel_->set_receiver([this](int rank, const ToWorker& message) {
    for (auto& replica : replicas_) {
      const std::vector<int>& ranks = replica->ranks();
      if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) {
        return replica->receive(rank, message);
      }
    }
    violation("rank " + std::to_string(rank) + " is a spare and got a message");
  });
  engine_ = std::make_unique<Engine>(topology_, placement_, *channel_, options_);
  draw_clients();
  draw_misfortunes();
}

Scenario::~Scenario() = default;

void Scenario::violation(const std::string& what) {
  if (!violation_) violation_ = what;
}

void Scenario::draw_job() {
  const int num_replicas = random_.between(1, 3);
  int rank = 1;
  for (int replica = 0; replica < num_replicas; ++replica) {
    ReplicaSpec& spec = *placement_.add_replicas();
    const int num_stages = random_.between(1, 4);
    for (int stage = 0; stage < num_stages; ++stage) {
      StageSpec& stage_spec = *spec.add_stages();
      const int degree = random_.between(1, 3);
      for (int tp_rank = 0; tp_rank < degree; ++tp_rank) {
        ShardSpec& shard = *stage_spec.add_shards();
        shard.set_rank(rank++);
        shard.set_tp_rank(tp_rank);
      }
    }
  }
  const int num_spares = random_.between(0, 1);
  for (int number = 1; number < rank + num_spares; ++number) {
    RankInfo& info = *topology_.add_ranks();
    info.set_rank(number);
    info.set_host("host" + std::to_string((number - 1) / 2));
  }
  const int sizes[] = {1, 2, 4, 16};
  placement_.set_block_size(sizes[random_.between(0, 3)]);
  placement_.set_context(random_.between(2, 100));
  // At the least, one request of full length fits alone.
  const int least =
      (placement_.context() - 1 + placement_.block_size() - 1) / placement_.block_size();
  placement_.set_num_blocks(random_.between(least, least * random_.between(1, 6)));
  placement_.set_max_sequences(random_.between(1, 12));
  placement_.set_max_batch_tokens(random_.between(1, 64));
  options_.max_queue = random_.between(4, 64);
  options_.vocab_size = random_.between(2, 500);
  options_.log = false;
  turn_delay_max_ = microseconds(random_.chance(50) ? 0 : random_.between(1, 2000));
}

void Scenario::draw_clients() {
  const int num_clients = random_.between(1, 40);
  const int gap_us = random_.between(0, 4000);
  Clock::time_point arrival = timeline_.now();
  for (int index = 0; index < num_clients; ++index) {
    auto client = std::make_shared<Client>(*this, index);
    Request& request = client->request;
    request.id = "request-" + std::to_string(index);
    request.sampling.seed = random_.bits();
    request.sampling.logprobs = random_.chance(20) ? random_.between(1, 2) : 0;
    request.sampling.presence_penalty = random_.chance(40) ? 0.5 : 0;
    const int32_t num_prompt = random_.between(1, placement_.context() - 1);
    // Few different prompts: equal ones must not disturb each other either.
    for (int32_t i = 0; i < num_prompt; ++i) request.prompt.push_back(random_.between(0, 1));
    request.max_tokens = random_.between(1, placement_.context() - num_prompt);
    if (random_.chance(40)) request.stop_ids.push_back(random_.between(0, options_.vocab_size - 1));
    if (random_.chance(15)) client->enough = random_.between(1, request.max_tokens);
    arrival += random_.up_to(microseconds(gap_us));
    if (random_.chance(15)) {
      request.deadline = arrival + microseconds(random_.between(0, 100'000));
      timeline_.at(*request.deadline, [] {});  // as the loop wakes for it
    }
    timeline_.at(arrival, [this, client] { client->submit(*engine_); });
    if (random_.chance(15)) {
      timeline_.at(arrival + microseconds(random_.between(0, 60'000)),
                   [this, client] { client->cancel(*engine_); });
    }
    clients_.push_back(std::move(client));
  }
}

void Scenario::draw_misfortunes() {
  const auto some_time = [this] { return microseconds(random_.between(0, 80'000)); };
  const int last_rank = topology_.ranks_size();
  if (random_.chance(30)) {
    const int rank = random_.between(1, last_rank);
    timeline_.after(some_time(), [this, rank] { suspect(rank); });
  }
  for (int replica = 0; replica < placement_.replicas_size(); ++replica) {
    if (random_.chance(25)) timeline_.after(some_time(), [this, replica] { crash(replica); });
    if (random_.chance(10)) timeline_.after(some_time(), [this, replica] { corrupt(replica); });
  }
}

bool Scenario::hit(int replica) { return hit_.insert(replica).second; }

void Scenario::crash(int index) {
  if (!hit(index)) return;
  SimulatedReplica& replica = *replicas_[index];
  const std::vector<int>& ranks = replica.ranks();
  const int victim = ranks[random_.between(0, static_cast<int>(ranks.size()) - 1)];
  LossSeen loss;
  loss.replica = index;
  loss.culprits.insert(rank_name(victim));
  if (random_.chance(40)) {
    const Code code = random_.chance(50) ? Code::kInternal : Code::kResourceExhausted;
    loss.first = replica.report_failure(victim, code, "out of\nluck");
    replica.close(victim, "its connection ended");
  } else {
    loss.first = replica.close(victim, "its connection ended");
  }
  loss.last = loss.first;
  // Some peers notice by themselves, and may be heard before the victim is.
  for (const int peer : ranks) {
    if (peer == victim || !random_.chance(30)) continue;
    const Code code = random_.chance(50) ? Code::kCancelled : Code::kUnavailable;
    const Clock::time_point heard = replica.report_failure(peer, code, "a peer is lost");
    if (heard < loss.first) {
      loss.culprits.insert(rank_name(peer));
      loss.first = heard;
    }
    replica.close(peer, "its connection ended");
  }
  losses_.push_back(std::move(loss));
}

void Scenario::corrupt(int index) {
  if (!hit(index)) return;
  const auto fault = static_cast<Fault>(
      random_.between(static_cast<int>(Fault::kWrongBatch), static_cast<int>(Fault::kWrongKind)));
  replicas_[index]->corrupt_next(fault, [this, index](int sender, Clock::time_point heard) {
    losses_.push_back({index, Code::kInternal, heard, heard, {rank_name(sender)}});
  });
}

void Scenario::suspect(int rank) {
  channel_->report({rank, ChannelEvent::Kind::kSuspected, {}, "no heartbeat for 2 s"});
  timeline_.after(random_.up_to(microseconds(20'000)), [this, rank] {
    channel_->report({rank, ChannelEvent::Kind::kRecovered, {}, ""});
  });
}

std::string Scenario::rank_name(int rank) const {
  for (const ReplicaSpec& replica : placement_.replicas()) {
    for (int stage = 0; stage < replica.stages_size(); ++stage) {
      for (const ShardSpec& shard : replica.stages(stage).shards()) {
        if (shard.rank() != rank) continue;
        return "rank " + std::to_string(rank) + " (host " + topology_.ranks(rank - 1).host() +
               ", stage " + std::to_string(stage) + ")";
      }
    }
  }
  return "no rank";
}

void Scenario::plan_turn() {
  if (turn_planned_) return;
  turn_planned_ = true;
  timeline_.after(random_.up_to(turn_delay_max_), [this] {
    turn_planned_ = false;
    int turns = 0;
    while (engine_->tick(timeline_.now())) {
      if (++turns == kMaxTurnsAtOnce) return violation("the engine never comes to rest");
    }
    check_nobody_idles();
  });
}

std::optional<std::string> Scenario::run() {
  bool turn_was_planned = false;
  while (!violation_ && timeline_.step()) {
    if (++num_steps_ == kMaxSteps) violation("no end in sight");
    // Whatever happened wakes the engine, but for its own turn.
    if (!turn_was_planned || turn_planned_) plan_turn();
    turn_was_planned = turn_planned_;
  }
  if (!violation_) check_end();
  return violation_;
}

// While a request has no replica, each of them has something to do: it could run that request.
void Scenario::check_nobody_idles() {
  const int32_t waiting = engine_->num_queued();
  if (waiting == 0) return;
  const v1::ClusterHealth health = engine_->health();
  for (const ReplicaSpec& replica : placement_.replicas()) {
    const int reporter = replica.stages(replica.stages_size() - 1).shards(0).rank();
    const bool lost =
        channel_->is_abandoned(reporter) || health.ranks(reporter - 1).state() == "dead";
    if (lost || channel_->num_in_flight(reporter) > 0) continue;
    violation("rank " + std::to_string(reporter) + " idles while " + std::to_string(waiting) +
              " requests wait");
  }
}

void Scenario::check_end() {
  for (const auto& client : clients_) check_client(*client);
  const v1::Load load = engine_->load();
  if (load.running() != 0 || load.waiting() != 0 ||
      !engine_->wait_idle(std::chrono::milliseconds(0))) {
    violation("not idle at the end");
  }
  if (load.blocks_free() != load.blocks_total()) {
    violation(std::to_string(load.blocks_total() - load.blocks_free()) + " blocks are lost");
  }
  std::set<int> lost;
  for (const LossSeen& loss : losses_) lost.insert(loss.replica);
  for (int index = 0; index < placement_.replicas_size(); ++index) {
    replicas_[index]->check_end(lost.contains(index));
    // What another has lost comes back late.
    if (lost.empty() && replicas_[index]->out_of_order()) violation("the order of arrival is lost");
  }
  const bool all_lost = static_cast<int>(lost.size()) == placement_.replicas_size();
  if (engine_->lost_reason().empty() == all_lost) violation("lost_reason() is wrong");
  if (engine_->health().serving() == all_lost) violation("health() is wrong");
}

void Scenario::check_client(const Client& client) {
  const std::string name = client.name();
  const std::vector<int32_t> alone = client.alone(options_.vocab_size);
  if (client.got.size() > alone.size() ||
      !std::equal(client.got.begin(), client.got.end(), alone.begin())) {
    return violation(name + " got other tokens than alone");
  }
  // Where its answer ends if nobody disturbs it.
  const std::vector<int32_t>& stops = client.request.stop_ids;
  const auto stop = std::find_first_of(alone.begin(), alone.end(), stops.begin(), stops.end());
  const auto stop_size = static_cast<size_t>(stop - alone.begin()) + (stop != alone.end() ? 1 : 0);
  const size_t whole = std::min(stop_size, client.enough);
  const bool at_stop_id = stop != alone.end() && whole == stop_size;
  const bool stopped = at_stop_id || whole == client.enough;
  switch (client.end) {
    case Client::End::kStop:
    case Client::End::kLength:
      if (client.got.size() != whole || (client.end == Client::End::kStop) != stopped ||
          client.stop_id.has_value() != at_stop_id ||
          (at_stop_id && *client.stop_id != client.got.back())) {
        violation(name + " finished after " + std::to_string(client.got.size()) + " tokens of " +
                  std::to_string(whole) + ", or for another reason");
      }
      return;
    case Client::End::kError: return check_error(client);
    case Client::End::kRefused:
      if (client.error_code == Code::kUnavailable && !losses_.empty()) return;
      if (client.error_code == Code::kResourceExhausted) return;
      return violation(name + " was refused with " + code_name(client.error_code));
    case Client::End::kNone:
      if (!client.cancelled) violation(name + " hangs");
  }
}

void Scenario::check_error(const Client& client) {
  const auto mentions = [&](const std::string& text) {
    return client.error.find(text) != std::string::npos;
  };
  const std::optional<Clock::time_point>& deadline = client.request.deadline;
  if (client.error_code == Code::kDeadlineExceeded && deadline) {
    if (client.ended >= *deadline && client.ended <= *deadline + turn_delay_max_) return;
    return violation(client.name() + " got DEADLINE_EXCEEDED at the wrong time");
  }
  // At once: in the turn that the coordinator takes when it has heard. A request that waits in the
  // inbox when the last replica goes hears in the turn after.
  for (const LossSeen& loss : losses_) {
    if (client.error_code != loss.code || client.ended < loss.first ||
        client.ended > loss.last + turn_delay_max_) {
      continue;
    }
    if (std::any_of(loss.culprits.begin(), loss.culprits.end(), mentions)) return;
  }
  const std::string reason = engine_->lost_reason();
  if (client.got.empty() && !reason.empty() && mentions(reason)) return;
  violation(client.name() + " ended without cause: " + client.error);
}

void Scenario::add_to(Tally& tally) const {
  for (const auto& client : clients_) {
    ++tally.requests;
    tally.tokens += static_cast<int64_t>(client->got.size());
    const auto count = [&](Client::End end) { return client->end == end ? 1 : 0; };
    tally.stopped += count(Client::End::kStop);
    tally.full_length += count(Client::End::kLength);
    tally.refused += count(Client::End::kRefused);
    tally.cancelled += client->cancelled && client->end == Client::End::kNone ? 1 : 0;
    if (client->end != Client::End::kError) continue;
    tally.unavailable += client->error_code == Code::kUnavailable ? 1 : 0;
    tally.deadline_exceeded += client->error_code == Code::kDeadlineExceeded ? 1 : 0;
    tally.internal += client->error_code == Code::kInternal ? 1 : 0;
  }
  tally.replicas_lost += static_cast<int64_t>(losses_.size());
  std::set<uint64_t> begun;
  for (const auto& replica : replicas_) {
    tally.restarts += replica->num_restarts();
    for (const uint64_t sequence : replica->begun()) {
      tally.moved += begun.insert(sequence).second ? 0 : 1;
    }
  }
  tally.steps += num_steps_;
}

}  // namespace trireme
