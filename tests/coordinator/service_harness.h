// SPDX-License-Identifier: Apache-2.0
// A real server on a real port over a real engine; only the workers are played: a thread that
// answers each micro-batch with tokens that follow from the sequence alone, so company cannot
// change them.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

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

namespace trireme {

using std::chrono::milliseconds;

// Two stages, ranks 1 and 2.
class PlayedWorkers : public Channel {
 public:
  static constexpr int kReporter = 2;

  explicit PlayedWorkers(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    thread_ = std::thread([this] { run(); });
  }
  ~PlayedWorkers() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void send(int rank, const ToWorker& message) override {
    if (rank != kReporter || !message.has_micro_batch()) return;
    {
      const std::lock_guard lock(mutex_);
      batches_.push_back(message.micro_batch());
    }
    changed_.notify_all();
  }
  std::optional<ChannelEvent> poll() override {
    const std::lock_guard lock(mutex_);
    if (events_.empty()) return std::nullopt;
    ChannelEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  void set_wake(std::function<void()> wake) override {
    const std::lock_guard lock(mutex_);
    wake_ = std::move(wake);
  }

  // Each micro-batch takes at least so long.
  void set_step(milliseconds step) {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }
  // While it is held nothing is answered.
  void hold(bool held) {
    {
      const std::lock_guard lock(mutex_);
      held_ = held;
    }
    changed_.notify_all();
  }
  void report(int rank, ChannelEvent::Kind kind) { report({rank, kind, {}, "it was killed"}); }

  // The token after `token` at `position`: ordinary ids, among them halves of characters.
  int32_t next_token(int32_t token, int32_t position) const {
    int32_t id = (token * 31 + position * 17 + 7) % tokenizer_.size();
    while (tokenizer_.is_special(id)) id = (id + 1) % tokenizer_.size();
    return id;
  }
  std::vector<int32_t> continuation(const std::vector<int32_t>& prompt, int count) const {
    std::vector<int32_t> ids;
    int32_t last = prompt.back();
    for (int i = 0; i < count; ++i) {
      last = next_token(last, static_cast<int32_t>(prompt.size()) + i - 1);
      ids.push_back(last);
    }
    return ids;
  }

 private:
  void report(ChannelEvent event) {
    std::function<void()> wake;
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
      wake = wake_;
    }
    wake();
  }

  MicroBatchResult answer(const MicroBatch& batch) const {
    MicroBatchResult result;
    result.set_id(batch.id());
    for (const SequenceChunk& chunk : batch.chunks()) {
      if (!chunk.sample()) continue;
      const int last = chunk.token_ids_size() - 1;
      SampledToken& token = *result.add_tokens();
      token.set_sequence(chunk.sequence());
      token.set_token(next_token(chunk.token_ids(last), chunk.position() + last));
      for (int32_t i = 0; i < chunk.draw().logprobs(); ++i) {
        TokenLogprob& logprob = *token.add_logprobs();
        logprob.set_id(i);
        logprob.set_logprob(-static_cast<float>(i) - 0.5f);
      }
    }
    return result;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || (!held_ && !batches_.empty()); });
      if (ending_) return;
      const MicroBatch batch = std::move(batches_.front());
      batches_.pop_front();
      const milliseconds step = step_;
      lock.unlock();
      std::this_thread::sleep_for(step);
      ChannelEvent event{kReporter, ChannelEvent::Kind::kMessage, {}, ""};
      *event.message.mutable_result() = answer(batch);
      report(std::move(event));
      lock.lock();
    }
  }

  const Tokenizer& tokenizer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<MicroBatch> batches_;
  std::deque<ChannelEvent> events_;
  std::function<void()> wake_;
  milliseconds step_{0};
  bool held_ = false;
  bool ending_ = false;
  std::thread thread_;
};

struct HarnessOptions {
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
      : path_(TRIREME_SOURCE_DIR "/tests/data/tiny-llama3"),
        tokenizer_(load_tokenizer(path_, "llama")),
        workers_(*tokenizer_),
        service_(options.token) {
    spec_.set_name("played");
    spec_.set_vocab_size(512);
    spec_.set_bos_id(480);
    spec_.add_stop_ids(484);
    chat_ = make_chat_format(path_, "llama", spec_.bos_id(), *tokenizer_);
    place(options);
    service_.set_drain_listener([this] { drained = true; });
    options.server.listen = options.listen;
    options.server.has_token = !options.token.empty();
    server_ = std::make_unique<Server>(options.server, service_);
    service_.announce(topology_, placement_);
    EngineOptions engine;
    engine.max_queue = options.max_queue;
    engine.log = false;
    engine_ = std::make_unique<Engine>(topology_, placement_, workers_, engine);
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
    for (int i = 0; i < 2000; ++i) {
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
      shard.mutable_vocab()->set_end(512);
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

inline Seen read_all(grpc::ClientReaderInterface<v1::GenerateReply>& reader) {
  Seen seen;
  v1::GenerateReply reply;
  while (reader.Read(&reply)) {
    if (seen.finished) seen.after_finished = true;
    if (reply.has_finished()) seen.finished = reply.finished();
    if (!reply.has_delta()) continue;
    ++seen.num_deltas;
    seen.ids.insert(seen.ids.end(), reply.delta().token_ids().begin(),
                    reply.delta().token_ids().end());
    seen.text += reply.delta().text();
    seen.num_logprobs += reply.delta().logprobs_size();
  }
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

}  // namespace trireme
