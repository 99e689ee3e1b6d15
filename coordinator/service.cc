// SPDX-License-Identifier: Apache-2.0
#include "coordinator/service.h"

#include <algorithm>
#include <utility>

#include "coordinator/auth.h"
#include "coordinator/generation.h"
#include "coordinator/retry.h"
#include "coordinator/status.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "proto/inference.grpc.pb.h"

namespace trireme {
namespace {

// A stream costs memory until its client has read it, also after its request has ended.
constexpr int kMaxOpenStreams = 1024;
constexpr std::chrono::milliseconds kStreamRetry{1000};
constexpr size_t kMaxWatches = 64;

// The gRPC edge: what is thrown below becomes a status here.
template <class Work>
grpc::Status status_of(Work&& work) {
  try {
    work();
    return grpc::Status::OK;
  } catch (const TryLater& error) {
    return to_status(error.code(), error.what(), error.retry_delay());
  } catch (const Error& error) {
    return to_status(error.code(), error.what());
  } catch (const std::exception& error) {
    log_error(std::string("a request met a bug: ") + error.what());
    return to_status(Code::kInternal, "the server met a bug; its log says more");
  }
}

template <class Work>
grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext* context, Work&& work) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(status_of(work));
  return reactor;
}

// The call's deadline on the engine's clock.
std::optional<Clock::time_point> deadline_of(const grpc::CallbackServerContext& context) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  // No deadline is the end of time; so far ahead the clocks could not be added.
  if (left > std::chrono::hours(24 * 365)) return std::nullopt;
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(left);
}

// Who sent a call: an identity that TLS has proved, else its connection. Callers of a Unix socket
// look alike: they are one user.
std::string caller_of(const grpc::CallbackServerContext& context) {
  const auto proof = context.auth_context();
  if (!proof->IsPeerAuthenticated()) return context.peer();
  std::string identity = "TLS";
  for (const grpc::string_ref& part : proof->GetPeerIdentity()) {
    identity += ' ' + std::string(part.data(), part.size());
  }
  return identity;
}

[[noreturn]] void refuse_unplaced() {
  throw Error(Code::kFailedPrecondition, "still starting: the model is not placed yet; try again");
}

// What the answers to one request share. Engine's thread only.
struct Replies {
  std::shared_ptr<ReplyStream> stream;
  std::function<void()> on_end;
  int32_t num_open = 0;
};

// One answer's output on its way from the engine to the request's stream.
class Answer final : public GenerationListener {
 public:
  Answer(const Tokenizer& tokenizer, GenerationOptions options, std::shared_ptr<Replies> replies)
      : replies_(std::move(replies)), generation_(tokenizer, std::move(options), *this) {}

  RequestSink* sink() { return &generation_; }

 private:
  void on_delta(const v1::Delta& delta) override { replies_->stream->add(delta); }
  void on_finished(const v1::Finished& finished) override {
    const bool last = --replies_->num_open == 0;
    if (last) replies_->on_end();
    replies_->stream->finish(finished, last);
  }
  // The engine tells it to every answer; the first ends the stream.
  void on_error(Code code, const std::string& message) override {
    replies_->on_end();
    replies_->stream->close(to_status(code, message));
  }

  const std::shared_ptr<Replies> replies_;
  Generation generation_;
};

}  // namespace

class Service::InferenceApi final : public v1::Inference::CallbackService {
 public:
  explicit InferenceApi(trireme::Service& service) : service_(service) {}

  grpc::ServerWriteReactor<v1::GenerateReply>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return service_.start(context, *request);
  }

  grpc::ServerWriteReactor<v1::GenerateReply>* Chat(grpc::CallbackServerContext* context,
                                                    const v1::ChatRequest* request) override {
    return service_.start(context, *request);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeReply* reply) override {
    return answer(context, [&] {
      service_.require_token(*context);
      const std::vector<int32_t> ids = tokenize(*request, service_.serving().model);
      reply->mutable_token_ids()->Assign(ids.begin(), ids.end());
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeReply* reply) override {
    return answer(context, [&] {
      service_.require_token(*context);
      reply->set_text(detokenize(*request, service_.serving().model));
    });
  }

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request, v1::AbortReply*) override {
    return answer(context, [&] {
      service_.require_token(*context);
      refuse_unknown_fields(*request);
      check_request_id(request->request_id());
      service_.abort(request->request_id(), caller_of(*context));
    });
  }

 private:
  trireme::Service& service_;  // not the generated Service that it inherits
};

class Service::ClusterApi final : public v1::Cluster::CallbackService {
 public:
  explicit ClusterApi(trireme::Service& service) : service_(service) {}

  grpc::ServerUnaryReactor* GetTopology(grpc::CallbackServerContext* context,
                                        const v1::GetTopologyRequest* request,
                                        Topology* reply) override {
    return answer(context, [&] {
      service_.require_token(*context);
      refuse_unknown_fields(*request);
      *reply = *service_.topology();
    });
  }

  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                         const v1::GetPlacementRequest* request,
                                         Placement* reply) override {
    return answer(context, [&] {
      service_.require_token(*context);
      refuse_unknown_fields(*request);
      *reply = *service_.placement();
    });
  }

  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const v1::GetLoadRequest* request, v1::Load* reply) override {
    return answer(context, [&] {
      service_.require_token(*context);
      refuse_unknown_fields(*request);
      *reply = service_.serving().engine.load();
    });
  }

  grpc::ServerWriteReactor<v1::ClusterHealth>* WatchHealth(
      grpc::CallbackServerContext* context, const v1::WatchHealthRequest* request) override {
    return service_.watch(context, *request);
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request, v1::DrainReply*) override {
    return answer(context, [&] {
      if (service_.token_.empty()) {
        throw Error(Code::kPermissionDenied,
                    "cannot drain: it takes the admin token, and this server has none; start it "
                    "with --token_file, or send it SIGTERM");
      }
      if (!service_.has_token(*context)) {
        throw Error(Code::kPermissionDenied,
                    "cannot drain: the call does not carry the admin token; send it as metadata "
                    "\"authorization: Bearer TOKEN\"");
      }
      refuse_unknown_fields(*request);
      if (service_.drain_listener_) service_.drain_listener_();
    });
  }

 private:
  trireme::Service& service_;  // not the generated Service that it inherits
};

Service::Service(std::string token)
    : token_(std::move(token)),
      inference_(std::make_unique<InferenceApi>(*this)),
      cluster_(std::make_unique<ClusterApi>(*this)) {}

Service::~Service() = default;

std::vector<grpc::Service*> Service::grpc_services() { return {inference_.get(), cluster_.get()}; }

void Service::set_health_listener(std::function<void(bool)> listener) {
  const std::lock_guard lock(watch_mutex_);
  health_listener_ = std::move(listener);
}

void Service::set_drain_listener(std::function<void()> listener) {
  drain_listener_ = std::move(listener);
}

// ---- the server's life ----

void Service::announce(const Topology& topology, const Placement& placement, const Engine& engine) {
  auto machines = std::make_shared<const Topology>(topology);
  auto places = std::make_shared<const Placement>(placement);
  {
    const std::lock_guard lock(mutex_);
    topology_ = std::move(machines);
    placement_ = std::move(places);
    engine_ = &engine;
  }
  refresh_health();
}

void Service::start_serving(const ServedModel& model, Engine& engine) {
  {
    const std::lock_guard lock(mutex_);
    serving_.emplace(Serving{model, engine});
  }
  refresh_health();
}

void Service::drain(const std::string& reason) {
  Engine* engine = nullptr;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    if (serving_) engine = &serving_->engine;
  }
  if (engine != nullptr) engine->drain(reason);
  refresh_health();
}

bool Service::close_streams(std::chrono::milliseconds timeout) {
  {
    const std::lock_guard lock(watch_mutex_);
    watches_closed_ = true;
    for (const auto& watch : watches_) {
      if (const auto stream = watch.lock()) {
        stream->close(to_status(Code::kUnavailable, "the server is ending"));
      }
    }
    watches_.clear();
  }
  return open_.wait_none(timeout);
}

const Service::Serving& Service::serving() const {
  const std::lock_guard lock(mutex_);
  if (!serving_) {
    throw Error(Code::kFailedPrecondition,
                "still loading the model: wait until grpc.health.v1 says SERVING");
  }
  return *serving_;
}

// Whoever reads one keeps it, also where announce() sets another meanwhile.
std::shared_ptr<const Topology> Service::topology() const {
  const std::lock_guard lock(mutex_);
  if (!topology_) refuse_unplaced();
  return topology_;
}

std::shared_ptr<const Placement> Service::placement() const {
  const std::lock_guard lock(mutex_);
  if (!placement_) refuse_unplaced();
  return placement_;
}

// ---- health ----

v1::ClusterHealth Service::health() const {
  const std::lock_guard lock(mutex_);
  v1::ClusterHealth health;
  health.set_state("starting");
  if (engine_ == nullptr) return health;
  health = engine_->health();
  if (!serving_) {
    health.set_serving(false);
    if (health.state() == "serving") health.set_state("loading");
    for (v1::RankHealth& rank : *health.mutable_ranks()) {
      if (rank.state() == "serving") rank.set_state("loading");
    }
  } else if (draining_) {
    health.set_serving(false);
  }
  return health;
}

void Service::refresh_health() {
  const std::lock_guard lock(watch_mutex_);
  const v1::ClusterHealth now = health();
  std::erase_if(watches_, [](const auto& watch) { return watch.expired(); });
  for (const auto& watch : watches_) {
    if (const auto stream = watch.lock()) stream->update(now);
  }
  if (health_listener_) health_listener_(now.serving());
}

grpc::ServerWriteReactor<v1::ClusterHealth>* Service::watch(grpc::CallbackServerContext* context,
                                                            const v1::WatchHealthRequest& request) {
  const auto stream = std::make_shared<HealthStream>(open_, context);
  stream->keep();
  const grpc::Status status = status_of([&] {
    require_token(*context);
    refuse_unknown_fields(request);
    const std::lock_guard lock(watch_mutex_);
    if (watches_closed_) throw Error(Code::kUnavailable, "the server is ending");
    std::erase_if(watches_, [](const auto& watch) { return watch.expired(); });
    if (watches_.size() >= kMaxWatches) {
      throw Error(Code::kResourceExhausted,
                  "cannot watch: " + std::to_string(watches_.size()) +
                      " clients do already, which is the most; try later");
    }
    watches_.push_back(stream);
    stream->update(health());
  });
  if (!status.ok()) stream->close(status);
  return stream.get();
}

// ---- who calls ----

bool Service::has_token(const grpc::CallbackServerContext& context) const {
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  if (begin == end || std::next(begin) != end) return false;
  return bearer_matches({begin->second.data(), begin->second.size()}, token_);
}

void Service::require_token(const grpc::CallbackServerContext& context) const {
  if (token_.empty() || has_token(context)) return;
  throw Error(Code::kUnauthenticated,
              "this server asks for a token: send it as metadata \"authorization: Bearer TOKEN\" "
              "(trireme chat --token_file FILE does)");
}

// ---- requests ----

template <class Message>
grpc::ServerWriteReactor<v1::GenerateReply>* Service::start(grpc::CallbackServerContext* context,
                                                            const Message& message) {
  const auto stream = std::make_shared<ReplyStream>(open_, context);
  stream->keep();
  const grpc::Status status = status_of([&] {
    require_token(*context);
    const Serving& now = serving();
    if (open_.count() > kMaxOpenStreams) {
      throw TryLater("cannot take the request: " + std::to_string(kMaxOpenStreams) +
                         " streams are open, which is the most",
                     kStreamRetry);
    }
    PreparedRequest prepared = prepare(message, now.model);
    prepared.request.deadline = deadline_of(*context);
    submit(std::move(prepared), caller_of(*context), stream, now);
  });
  if (!status.ok()) stream->close(status);
  return stream.get();
}

void Service::submit(PreparedRequest prepared, const std::string& caller,
                     const std::shared_ptr<ReplyStream>& stream, const Serving& serving) {
  const std::string id = prepared.request.id;
  const auto replies = std::make_shared<Replies>();
  replies->stream = stream;
  replies->on_end = [this, id, stream = stream.get()] { remove_running(id, stream, nullptr); };
  replies->num_open = prepared.n;
  std::vector<Request> answers;
  for (int32_t index = 0; index < prepared.n; ++index) {
    // The listener and the sink are one object.
    GenerationOptions options = prepared.options(index);
    if (prepared.make_answer_reader) options.answer = prepared.make_answer_reader();
    const auto output =
        std::make_shared<Answer>(serving.model.tokenizer, std::move(options), replies);
    answers.push_back(prepared.answer(index));
    answers.back().sink = std::shared_ptr<RequestSink>(output, output->sink());
  }
  stream->set_abandon([this, id, stream = stream.get(), &engine = serving.engine] {
    remove_running(id, stream, &engine);
  });
  // Under the lock, so that neither its end nor an Abort comes before its entry.
  const std::lock_guard lock(mutex_);
  if (running_.contains(id)) {
    throw Error(Code::kAlreadyExists,
                "request_id: " + id + " is running already; ids must differ, or be left out");
  }
  serving.engine.submit(std::move(answers));
  running_.emplace(id, Running{stream, caller});
}

void Service::remove_running(const std::string& id, const ReplyStream* stream, Engine* cancel_in) {
  const std::lock_guard lock(mutex_);
  const auto found = running_.find(id);
  // Its id may have been given to a later request.
  if (found == running_.end() || found->second.stream.get() != stream) return;
  if (cancel_in != nullptr) cancel_in->cancel(id);
  running_.erase(found);
}

void Service::abort(const std::string& id, const std::string& caller) {
  Engine& engine = serving().engine;
  const std::lock_guard lock(mutex_);
  const auto found = running_.find(id);
  // Whoever has come here with a token has the admin's.
  if (found != running_.end() && token_.empty() && found->second.caller != caller) {
    throw Error(Code::kPermissionDenied,
                "cannot abort " + id +
                    ": it came over another connection, and to end others' requests takes the "
                    "admin token, which this server has none of; start it with --token_file");
  }
  if (found == running_.end() ||
      !found->second.stream->close(to_status(Code::kCancelled, "the request was ended by Abort"))) {
    throw Error(Code::kNotFound, "cannot abort " + id + ": no request of this id is running");
  }
  engine.cancel(id);
  running_.erase(found);
}

}  // namespace trireme
