// SPDX-License-Identifier: Apache-2.0
// The gRPC edge: trireme.v1.Inference and trireme.v1.Cluster over one engine. Checks who calls and
// what they ask, tokenises, submits, and streams what comes back. It can be bound before there is a
// model: until start_serving() requests get FAILED_PRECONDITION.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "coordinator/engine.h"
#include "coordinator/service_stream.h"
#include "coordinator/validate.h"
#include "proto/cluster.pb.h"
#include "proto/inference.pb.h"

namespace trireme {

class Service {
 public:
  // token: what callers must prove to have; empty: none is asked for.
  explicit Service(std::string token);
  // REQUIRES: the server that it is registered with is gone.
  ~Service();
  Service(const Service&) = delete;

  // The services to register with a server.
  std::vector<grpc::Service*> grpc_services();
  // serving: whether health is SERVING. Not called any more once another, or none, is set.
  void set_health_listener(std::function<void(bool serving)> listener);
  // A client with the token asked for the end. Set before the server starts; called by any thread.
  void set_drain_listener(std::function<void()> listener);

  // The placement is known; the engine tells how the ranks are, and must outlive the server. Once
  // before the load, and once more where that has left fewer KV blocks than were planned.
  void announce(const Topology& topology, const Placement& placement, const Engine& engine);
  // Takes requests from now on. Model and engine must outlive the server.
  void start_serving(const ServedModel& model, Engine& engine);
  // The engine's health may have changed. Any thread.
  void refresh_health();
  // No more requests, which clients are told with this reason; health says NOT_SERVING. What runs
  // goes on.
  void drain(const std::string& reason);
  // Ends the WatchHealth streams, and waits until every stream has sent its status. False: some had
  // not when the time was up.
  bool close_streams(std::chrono::milliseconds timeout);

 private:
  class InferenceApi;
  class ClusterApi;
  struct Serving {
    ServedModel model;
    Engine& engine;
  };
  struct Running {
    std::shared_ptr<ReplyStream> stream;
    std::string caller;
  };

  const Serving& serving() const;                    // throws kFailedPrecondition while loading
  std::shared_ptr<const Topology> topology() const;  // the same, before announce()
  std::shared_ptr<const Placement> placement() const;
  v1::ClusterHealth health() const;
  void require_token(const grpc::CallbackServerContext& context) const;
  bool has_token(const grpc::CallbackServerContext& context) const;

  template <class Message>
  grpc::ServerWriteReactor<v1::GenerateReply>* start(grpc::CallbackServerContext* context,
                                                     const Message& message);
  void submit(PreparedRequest prepared, const std::string& caller,
              const std::shared_ptr<ReplyStream>& stream, const Serving& serving);
  // Its request has ended, or ends here: cancel_in is the engine to tell.
  void remove_running(const std::string& id, const ReplyStream* stream, Engine* cancel_in);
  // Throws kPermissionDenied where it is another caller's and there is no token to show.
  void abort(const std::string& id, const std::string& caller);
  grpc::ServerWriteReactor<v1::ClusterHealth>* watch(grpc::CallbackServerContext* context,
                                                     const v1::WatchHealthRequest& request);

  // Constant after the server started.
  const std::string token_;
  std::unique_ptr<InferenceApi> inference_;
  std::unique_ptr<ClusterApi> cluster_;
  std::function<void()> drain_listener_;

  OpenStreams open_;

  mutable std::mutex mutex_;
  // Guarded by mutex_; serving_ never changes once it is set, so it is used without.
  std::shared_ptr<const Topology> topology_;
  std::shared_ptr<const Placement> placement_;
  const Engine* engine_ = nullptr;  // set with them
  std::optional<Serving> serving_;
  bool draining_ = false;
  std::unordered_map<std::string, Running> running_;

  // Orders the updates of health, so that the last one said is the last one found.
  std::mutex watch_mutex_;
  // Guarded by watch_mutex_.
  std::function<void(bool)> health_listener_;
  std::vector<std::weak_ptr<HealthStream>> watches_;
  bool watches_closed_ = false;
};

}  // namespace trireme
