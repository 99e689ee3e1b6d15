// SPDX-License-Identifier: Apache-2.0
// A real server on a real port over a real engine; only the workers are played.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/engine.h"
#include "coordinator/server.h"
#include "coordinator/service.h"
#include "coordinator/tokenizer/chat.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "proto/inference.grpc.pb.h"
#include "tests/coordinator/played_workers.h"

namespace trireme {

struct HarnessOptions {
  std::string path = TRIREME_SOURCE_DIR "/tests/data/tiny-llama3";  // of the tokenizer
  std::string family = "llama";
  std::string listen = "127.0.0.1:0";
  std::string token;
  int32_t context = 512;
  int32_t max_queue = 256;
  int32_t max_sequences = 8;
  bool serve = true;  // false: still loading
  ServerOptions server;
};

class Harness {
 public:
  explicit Harness(HarnessOptions options = {})
      : path_(options.path),
        tokenizer_(load_tokenizer(path_, options.family)),
        workers_(*tokenizer_),
        service_(options.token) {
    spec_.set_name("played");
    const bool llama = options.family == "llama";
    spec_.set_vocab_size(std::max(512, tokenizer_->size()));
    spec_.set_bos_id(llama ? 480 : -1);
    if (llama) spec_.add_stop_ids(484);
    chat_ = make_chat_format(path_, options.family, spec_.bos_id(), *tokenizer_);
    place(options);
    service_.set_drain_listener([this] { drained = true; });
    options.server.listen = options.listen;
    options.server.has_token = !options.token.empty();
    server_ = std::make_unique<Server>(options.server, service_);
    EngineOptions engine;
    engine.max_queue = options.max_queue;
    engine.log = false;
    engine_ = std::make_unique<Engine>(topology_, placement_, workers_, engine);
    service_.announce(topology_, placement_, *engine_);
    engine_->set_health_listener([this] { service_.refresh_health(); });
    engine_->start();
    if (options.serve) start_serving();
    channel_ = connect(server_->address());
    stub_ = v1::Inference::NewStub(channel_);
    cluster_ = v1::Cluster::NewStub(channel_);
  }

  ~Harness() {
    engine_->stop("the test ends");
    EXPECT_TRUE(service_.close_streams(milliseconds(5000)));
    server_.reset();
  }

  void start_serving() {
    service_.start_serving({spec_, *tokenizer_, *chat_, placement_.context()}, *engine_);
  }

  // A connection of its own: gRPC shares one among channels with the same arguments.
  static std::shared_ptr<grpc::Channel> connect(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }

  // Until `condition` holds; false: it did not within 10 s.
  template <class Condition>
  static bool eventually(Condition&& condition) {
    for (int i = 0; i < 10000; ++i) {  // most are there at once; sanitizers are slow
      if (condition()) return true;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return false;
  }
  // No request runs or waits, and every block is free.
  bool idle() {
    return eventually([&] {
      const v1::Load load = engine_->load();
      return load.running() == 0 && load.waiting() == 0 &&
             load.blocks_free() == load.blocks_total();
    });
  }

  const std::string path_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatFormat> chat_;
  ModelSpec spec_;
  Topology topology_;
  Placement placement_;
  PlayedWorkers workers_;
  std::unique_ptr<Engine> engine_;
  Service service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<v1::Cluster::Stub> cluster_;
  std::atomic<bool> drained{false};

 private:
  void place(const HarnessOptions& options) {
    for (int rank = 1; rank <= 2; ++rank) {
      RankInfo& info = *topology_.add_ranks();
      info.set_rank(rank);
      info.set_host("oar" + std::to_string(rank));
    }
    ReplicaSpec& replica = *placement_.add_replicas();
    for (int stage = 0; stage < 2; ++stage) {
      ShardSpec& shard = *replica.add_stages()->add_shards();
      shard.set_rank(stage + 1);
      shard.mutable_vocab()->set_end(spec_.vocab_size());
    }
    placement_.set_block_size(16);
    placement_.set_num_blocks(options.context / 16 * options.max_sequences);
    placement_.set_max_sequences(options.max_sequences);
    placement_.set_max_batch_tokens(512);
    placement_.set_context(options.context);
  }
};

// What a client saw of one request.
struct Seen {
  std::vector<int32_t> ids;
  std::string text;
  int num_deltas = 0;
  int num_logprobs = 0;
  std::optional<v1::Finished> finished;
  bool after_finished = false;  // an event came behind `finished`
  grpc::Status status;
};

inline void note(const v1::GenerateReply& reply, Seen& seen) {
  if (seen.finished) seen.after_finished = true;
  if (reply.has_finished()) seen.finished = reply.finished();
  if (!reply.has_delta()) return;
  ++seen.num_deltas;
  seen.ids.insert(seen.ids.end(), reply.delta().token_ids().begin(),
                  reply.delta().token_ids().end());
  seen.text += reply.delta().text();
  seen.num_logprobs += reply.delta().logprobs_size();
}

inline Seen read_all(grpc::ClientReaderInterface<v1::GenerateReply>& reader) {
  Seen seen;
  v1::GenerateReply reply;
  while (reader.Read(&reply)) note(reply, seen);
  seen.status = reader.Finish();
  return seen;
}

inline v1::GenerateRequest ids_request(const std::vector<int32_t>& ids, int max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.set_max_tokens(max_tokens);
  return request;
}

inline Seen generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return read_all(*stub.Generate(&context, request));
}

// What it saw of each of the n answers.
inline std::vector<Seen> generate_all(v1::Inference::Stub& stub,
                                      const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, request);
  std::vector<Seen> seen;
  v1::GenerateReply reply;
  while (reader->Read(&reply)) {
    const int32_t index = reply.has_delta() ? reply.delta().index() : reply.finished().index();
    if (static_cast<size_t>(index) >= seen.size()) seen.resize(static_cast<size_t>(index) + 1);
    note(reply, seen[static_cast<size_t>(index)]);
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return seen;
}

inline grpc::Status abort_request(v1::Inference::Stub& stub, const std::string& id,
                                  const std::string& token = "") {
  grpc::ClientContext context;
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  v1::AbortRequest message;
  message.set_request_id(id);
  v1::AbortReply ignored;
  return stub.Abort(&context, message, &ignored);
}

}  // namespace trireme
