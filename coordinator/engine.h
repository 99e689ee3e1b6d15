// SPDX-License-Identifier: Apache-2.0
// The coordinator's loop: takes requests from a bounded inbox, keeps every replica's pipeline full,
// hands tokens to sinks, and acts on the loss of a rank. One thread runs it; what is public may be
// called from any, but for tick(), num_queued() and set_health_listener(). It makes no MPI call and
// never blocks on a worker.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "coordinator/replica_speeds.h"
#include "coordinator/request.h"
#include "coordinator/retry.h"
#include "coordinator/roster.h"
#include "coordinator/scheduler.h"
#include "coordinator/step_drift.h"
#include "proto/cluster.pb.h"
#include "proto/inference.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

struct EngineOptions {
  int32_t max_queue = 256;  // answers admitted and not finished, beside those running
  // Spins this long after the last work before it sleeps: decode steps then start at once. It does
  // not spin where the last wait was longer than this: that would take a core from the workers for
  // nothing.
  std::chrono::microseconds spin{2000};
  // Ids that may be drawn: [0, vocab_size). 0: all rows of the placement, padding included.
  int32_t vocab_size = 0;
  bool log = true;                   // one line per finished request and per lost replica
  std::shared_ptr<StepDrift> drift;  // step times beside the plan's; null: they are not compared
};

class Engine {
 public:
  // `topology` names hosts in messages. The channel must outlive the engine; its wake is set here.
  Engine(const Topology& topology, const Placement& placement, Channel& channel,
         const EngineOptions& options);
  ~Engine();  // stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void start();  // runs loop() on a thread of its own
  // Ends every open request with UNAVAILABLE and the loop. Idempotent. Not from a sink.
  void stop(const std::string& reason);

  // Tokens that a request may have, prompt and answer together: the context, or what the KV blocks
  // of the replica with the fewest hold.
  int32_t longest() const;
  // Enters a request. Throws kInvalidArgument (it can never run), kResourceExhausted (queue full),
  // kUnavailable (no replica left, draining, stopped), kAlreadyExists (its id is running). The sink
  // hears of everything after that.
  void submit(Request request);
  // The same for all the answers to one request, which share its id: all enter, or none. Each has
  // an end of its own, but an error of one is the error of all.
  void submit(std::vector<Request> answers);
  // The client does not want it any more: no call of its sinks from the next turn on, blocks freed.
  // Unknown ids are ignored.
  void cancel(const std::string& id);
  // No admission from now on, for this reason; wait_idle() returns true when the last request has
  // ended.
  void drain(const std::string& reason);
  bool wait_idle(std::chrono::milliseconds timeout);

  // Ids of the requests that have not ended, ascending.
  std::vector<std::string> open_requests() const;
  v1::Load load() const;
  // What each rank is in; serving as long as a replica is whole with none of its ranks suspected,
  // and requests are taken.
  v1::ClusterHealth health(Clock::time_point now = Clock::now()) const;
  // Before start(): the ranks of a replica have memory for fewer KV blocks than the placement says.
  void set_num_blocks(int replica, int32_t num_blocks);
  // Before start(), while the ranks load: whoever polls the channel then feeds it.
  Roster& roster() { return roster_; }
  // Called on the engine's thread when a rank's state has changed, and twice a second while
  // something is in work. Set before start().
  void set_health_listener(std::function<void()> listener) {
    health_listener_ = std::move(listener);
  }
  // Why no replica is left; empty while one is.
  std::string lost_reason() const;

  // One turn: inbox, deadlines, events, dispatch. True if it did something. For loop() and the
  // simulation.
  bool tick(Clock::time_point now);
  // Requests that no replica has yet. From the thread of tick().
  int32_t num_queued() const { return static_cast<int32_t>(queue_.size()); }

 private:
  // Why a replica cannot go on.
  struct Loss {
    Code code = Code::kUnavailable;
    std::string message;
    // A rank's report that it lost another, one of `blamed`: that other one is the cause.
    bool consequence = false;
    std::vector<int> blamed{};
    int rank = 0;
    Clock::time_point when{};
  };
  struct InFlight {
    Clock::time_point dispatched;
    int32_t num_tokens = 0;
  };
  struct Replica {
    int index = 0;
    int32_t num_stages = 0;
    SchedulerOptions options;
    std::unique_ptr<Scheduler> scheduler;  // null: lost
    std::vector<int> ranks;
    int reporter = 0;         // the rank that sends results: the first of the last stage
    int64_t outstanding = 0;  // tokens still to compute, of all its requests
    std::deque<InFlight> in_flight;
    std::vector<Loss> losses;  // until the cause among them is known
  };
  struct Rank {
    Replica* replica = nullptr;  // null: a spare
    std::string name;            // "rank 2 (host a, stage 1)"
    bool failed = false;         // it has said why it ends: its kClosed is no news
    bool dead = false;
  };
  struct Active {
    Request request;
    Replica* replica = nullptr;  // null: it waits in queue_
    int32_t num_output = 0;
    int64_t outstanding = 0;  // its part of the replica's
    bool moved = false;
    Clock::time_point entered;
    std::optional<Clock::time_point> started;  // first dispatched
    std::optional<Clock::time_point> first_token;
  };
  // What wakes the loop. The channel's wake shares it, so it may be called when the engine is gone.
  struct Doorbell {
    std::mutex mutex;
    std::condition_variable condition;
    std::atomic<bool> rung{false};
    void ring();
  };

  // engine.cc: the loop, and requests from the inbox to their end.
  void loop();
  void wait();
  void check_request(const Request& request) const;
  bool take_inbox(Clock::time_point now);
  bool expire_deadlines(Clock::time_point now);
  bool dispatch(Clock::time_point now);
  void send(Replica& replica, MicroBatch batch, Clock::time_point now);
  void hand_over();
  Replica* best_replica(const Request& request);
  void deliver(uint64_t sequence, const SampledToken& token, Clock::time_point now);
  Active close(uint64_t sequence);
  void finish(uint64_t sequence, FinishReason reason, std::optional<int32_t> stop_id,
              Clock::time_point now);
  void fail(uint64_t sequence, Code code, const std::string& why, Clock::time_point now,
            const std::string& remark = "");
  void log_end(const Active& active, const std::string& end, Clock::time_point now) const;
  void publish();

  // engine_events.cc: what the ranks say, and what becomes of a replica that lost one.
  void name_ranks(const Topology& topology, const Placement& placement);
  bool take_events(Clock::time_point now);
  void take_event(const ChannelEvent& event, Rank& rank, Clock::time_point now);
  void take_message(int rank_number, const FromWorker& message, Rank& rank, Clock::time_point now);
  void compare_steps(int rank_number, const Heartbeat& beat);
  void take_result(int rank_number, const MicroBatchResult& result, const Rank& rank,
                   Clock::time_point now);
  void note_loss(int rank_number, const Rank& rank, Loss loss, Clock::time_point now);
  static bool has_cause(const std::vector<Loss>& losses);
  // The cause among the losses, once it is known.
  std::optional<Loss> find_cause(Replica& replica, Clock::time_point now);
  void lose(Replica& replica, const Loss& cause, Clock::time_point now);
  void tell_health(bool event, Clock::time_point now);

  // Constant.
  Channel& channel_;
  EngineOptions options_;
  int32_t context_;
  int32_t num_blocks_;  // of the replica that has the fewest
  int32_t block_size_;
  std::function<void()> health_listener_;
  std::shared_ptr<Doorbell> doorbell_ = std::make_shared<Doorbell>();

  Roster roster_;  // fed by the engine's thread

  // Engine thread only.
  std::vector<Replica> replicas_;
  std::map<int, Rank> ranks_;
  std::optional<Clock::time_point> explained_by_;  // when a loss waits for its cause until then
  Clock::time_point judged_, health_told_;         // when last
  bool told_busy_ = false;                         // at the last telling something was in work
  ReplicaSpeeds speeds_;
  std::set<uint64_t> queue_;                     // sequences that no replica has yet: by arrival
  std::unordered_map<uint64_t, Active> active_;  // by sequence
  std::set<std::pair<Clock::time_point, uint64_t>> deadlines_;  // of active_
  uint64_t prompt_tokens_ = 0;
  uint64_t output_tokens_ = 0;
  bool spin_pays_ = true;
  bool only_beats_ = false;  // the last events were nothing but heartbeats
  bool at_rest_ = false;     // and nothing else happened in that turn

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  // Guarded by mutex_.
  std::vector<std::pair<uint64_t, Request>> inbox_;
  std::vector<uint64_t> cancels_;
  std::unordered_map<std::string, std::vector<uint64_t>> ids_;  // each open request's sequences
  int32_t num_open_ = 0;                                        // sequences
  RetryPace pace_;                                              // of those that are answered
  uint64_t next_sequence_ = 1;
  bool is_idle_ = true;       // no request open, and the last sink has returned
  std::string drain_reason_;  // not empty: draining
  bool health_changed_ = false;
  int num_alive_ = 0;  // replicas
  std::string lost_reason_;
  std::string stop_reason_;  // not empty: stopped
  v1::Load load_;

  std::atomic<bool> stopping_{false};
  std::mutex stop_mutex_;  // one stop() at a time
  std::thread thread_;
};

}  // namespace trireme
