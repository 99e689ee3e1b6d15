// SPDX-License-Identifier: Apache-2.0
#include "launch/bench_load.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <random>
#include <set>

#include "coordinator/status.h"
#include "kernels/base/error.h"
#include "launch/client.h"

namespace trireme {
namespace {

// How soon a signal is seen, and progress told.
constexpr double kLookSeconds = 0.05;
constexpr std::chrono::seconds kAskLimit{10};
// Under what servers let a connection have: ours 256, others 100.
constexpr int32_t kCallsPerLane = 100;
// In a closed loop, after a request that was not answered: to fail them by the thousand says
// nothing.
constexpr std::chrono::milliseconds kPause{100};

// Whatever the vocabulary, this becomes some dozens of ordinary tokens.
constexpr const char* kWords =
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea kid body information back";

}  // namespace

std::vector<double> arrival_times(const BenchFlags& flags) {
  std::vector<double> due(static_cast<size_t>(flags.requests), 0.0);
  if (!flags.rate) return due;
  std::mt19937_64 random(flags.seed);
  // The mean of the gaps, shape x scale, is 1 / rate.
  std::gamma_distribution<double> gap(flags.burstiness, 1 / (*flags.rate * flags.burstiness));
  for (size_t i = 1; i < due.size(); ++i) due[i] = due[i - 1] + gap(random);
  return due;
}

std::vector<int32_t> make_prompt(const std::vector<int32_t>& words, const BenchFlags& flags,
                                 int32_t index) {
  std::seed_seq seed{static_cast<uint32_t>(flags.seed), static_cast<uint32_t>(flags.seed >> 32),
                     static_cast<uint32_t>(index)};
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<size_t> word(0, words.size() - 1);
  std::vector<int32_t> prompt(static_cast<size_t>(flags.input_len));
  for (int32_t& id : prompt) id = words[word(random)];
  return prompt;
}

namespace {

// Token ids of common words, by the server's own tokenizer.
std::vector<int32_t> ask_for_words(v1::Inference::Stub& stub, const std::string& token) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kAskLimit);
  add_token(context, token);
  v1::TokenizeRequest request;
  request.set_text(kWords);
  v1::TokenizeReply reply;
  const grpc::Status status = stub.Tokenize(&context, request, &reply);
  if (!status.ok()) throw_status(status);
  const std::set<int32_t> ids(reply.token_ids().begin(), reply.token_ids().end());
  if (ids.empty()) throw Error(Code::kInternal, "the server's tokenizer makes no token of a text");
  return {ids.begin(), ids.end()};
}

}  // namespace

struct BenchLoad::Call {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateReply>> reader;
  v1::GenerateReply reply;
  grpc::Status status;
  bool begun = false;  // what is under way is a read, not the start
  bool finishing = false;
  size_t lane = 0;
  BenchRecord record;
};

BenchLoad::BenchLoad(const BenchFlags& flags, StopSignal& stop,
                     std::function<void(const BenchProgress&)> tell)
    : flags_(flags),
      token_(token_of(flags)),
      stop_(stop),
      tell_(std::move(tell)),
      began_(Clock::now()) {
  const Lane& lane = open_lane();
  wait_connected(*lane.channel, flags_);
  words_ = ask_for_words(*lane.stub, token_);
  // Users of a closed loop have connected before; those of an open loop do it when they come.
  while (flags_.concurrency && *flags_.concurrency > kCallsPerLane * std::ssize(lanes_)) {
    wait_connected(*open_lane().channel, flags_);
  }
}

BenchLoad::Lane& BenchLoad::open_lane() {
  Lane& lane = lanes_.emplace_back();
  lane.channel = make_channel(flags_);
  lane.stub = v1::Inference::NewStub(lane.channel);
  return lane;
}

size_t BenchLoad::free_lane() {
  const auto lane = std::find_if(lanes_.begin(), lanes_.end(),
                                 [](const Lane& one) { return one.under_way < kCallsPerLane; });
  if (lane != lanes_.end()) return static_cast<size_t>(lane - lanes_.begin());
  open_lane();
  return lanes_.size() - 1;
}

// gRPC refers to a call until its last event.
BenchLoad::~BenchLoad() {
  stop_all();
  while (!calls_.empty()) wait(now() + kLookSeconds);
  queue_.Shutdown();
  void* tag = nullptr;
  for (bool ok = false; queue_.Next(&tag, &ok);) {
  }
}

void BenchLoad::warm_up() {
  drive({0.0}, 1);
  const bool answered =
      !records_.empty() && records_.front().outcome == BenchRecord::Outcome::kAnswered;
  if (!answered && !stopped_) throw_status(failure_);
}

std::vector<BenchRecord> BenchLoad::run() {
  records_.clear();
  progress_ = {};
  num_sent_ = 0;
  quiet_until_ = 0;
  const std::vector<double> due = arrival_times(flags_);
  began_ = Clock::now();
  drive(due, flags_.concurrency.value_or(flags_.requests));
  return std::move(records_);
}

void BenchLoad::drive(const std::vector<double>& due, int32_t most_at_once) {
  const auto to_send = [&] { return sends_ && num_sent_ < static_cast<int32_t>(due.size()); };
  while (to_send() || !calls_.empty()) {
    double until = now() + kLookSeconds;
    while (to_send() && static_cast<int32_t>(calls_.size()) < most_at_once) {
      const double next = next_due(due);
      if (next > now()) {
        until = std::min(until, next);
        break;
      }
      start(next);
    }
    wait(until);
    if (stop_.take_signal()) {
      stopped_ = true;
      stop_all();
    }
    progress_.under_way = static_cast<int32_t>(calls_.size());
    tell_(progress_);
  }
}

double BenchLoad::next_due(const std::vector<double>& due) const {
  const double time = due[static_cast<size_t>(num_sent_)];
  return flags_.concurrency ? std::max(time, quiet_until_) : time;
}

void BenchLoad::start(double due) {
  auto call = std::make_unique<Call>();
  v1::GenerateRequest request;
  const std::vector<int32_t> prompt = make_prompt(words_, flags_, num_sent_++);
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(flags_.temperature);
  request.set_max_tokens(flags_.output_len);
  request.set_ignore_eos(true);
  add_token(call->context, token_);
  call->lane = free_lane();
  Lane& lane = lanes_[call->lane];
  ++lane.under_way;
  call->reader = lane.stub->PrepareAsyncGenerate(&call->context, request, &queue_);
  call->record.sent = now();
  // In a closed loop a request is due when there is room for it.
  call->record.late = flags_.rate ? call->record.sent - due : 0;
  call->reader->StartCall(call.get());
  void* const tag = call.get();
  calls_.emplace(tag, std::move(call));
}

void BenchLoad::wait(double until) {
  const auto left = std::chrono::duration<double>(std::max(0.0, until - now()));
  const auto deadline = std::chrono::system_clock::now() +
                        std::chrono::duration_cast<std::chrono::system_clock::duration>(left);
  void* tag = nullptr;
  bool ok = false;
  if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) return;
  go_on(*calls_.at(tag), ok);
}

void BenchLoad::go_on(Call& call, bool ok) {
  if (call.finishing) return end(call);
  if (!ok) {
    call.finishing = true;
    return call.reader->Finish(&call.status, &call);
  }
  if (call.begun && call.reply.has_delta()) take(call.reply.delta(), now(), call.record);
  if (call.begun && call.reply.has_finished()) {
    call.record.prompt_tokens = call.reply.finished().usage().prompt_tokens();
  }
  call.begun = true;
  call.reader->Read(&call.reply, &call);
}

void BenchLoad::take(const v1::Delta& delta, double at, BenchRecord& record) {
  if (delta.token_ids().empty()) return;
  record.token_seconds.push_back(at);
  record.output_tokens += delta.token_ids_size();
}

void BenchLoad::end(Call& call) {
  using Outcome = BenchRecord::Outcome;
  BenchRecord& record = call.record;
  record.ended = now();
  if (call.status.ok() && record.output_tokens == 0) {
    call.status = {grpc::StatusCode::INTERNAL, "the answer has no token"};
  }
  Lane& lane = lanes_[call.lane];
  --lane.under_way;
  if (call.status.ok()) {
    record.outcome = Outcome::kAnswered;
    progress_.output_tokens += record.output_tokens;
  } else {
    const bool exhausted = call.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
    const auto delay = exhausted ? retry_delay_of(call.status) : std::nullopt;
    record.outcome = delay ? Outcome::kRefused : stopped_ ? Outcome::kStopped : Outcome::kFailed;
    record.error = call.status.error_message();
    failure_ = call.status;
    quiet_until_ = record.ended + std::chrono::duration<double>(delay.value_or(kPause)).count();
    if (lane.channel->GetState(false) != GRPC_CHANNEL_READY) sends_ = false;
  }
  ++progress_.ended;
  records_.push_back(std::move(record));
  calls_.erase(&call);
}

void BenchLoad::stop_all() {
  sends_ = false;
  for (const auto& [tag, call] : calls_) call->context.TryCancel();
}

}  // namespace trireme
