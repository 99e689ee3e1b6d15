// SPDX-License-Identifier: Apache-2.0
#include "launch/serve.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iostream>
#include <optional>

#include "coordinator/server.h"
#include "coordinator/service.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "launch/job.h"
#include "launch/stop_signal.h"
#include "topology/shard.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kDrainTime{30000};
// For the streams' last words: a client that reads has them within milliseconds.
constexpr milliseconds kCloseTime{1000};
// When a rank dies mpirun ends the others by SIGTERM. It may come before the dead rank's connection
// is seen to end, or some seconds after; either way it asks for no drain.
constexpr milliseconds kDeathMayFollow{200};
constexpr milliseconds kDeathExplains{5000};
constexpr milliseconds kIdlePoll{50};

// From the first request to the last; its end ends the engine and every stream, however it comes.
class Session {
 public:
  Session(StopSignal& stop, std::atomic<bool>& drain_asked, Service& service, Engine& engine)
      : stop_(stop), drain_asked_(drain_asked), service_(service), engine_(engine) {}

  ~Session() {
    engine_.stop(end_reason_);
    if (!service_.close_streams(kCloseTime)) log_warn("some clients did not read to their end");
  }

  // Returns when the session was asked to end; throws kUnavailable when it cannot go on.
  void run() {
    for (;;) {
      const StopSignal::Event event = stop_.wait(milliseconds(-1));
      look_for_deaths();
      if (event == StopSignal::Event::kSignal) {
        wait_for_explanation();
        return drain();
      }
      if (drain_asked_) return drain();
    }
  }

 private:
  // Notes the ranks that died. Throws where no replica is left.
  void look_for_deaths() {
    const std::string lost = engine_.lost_reason();
    if (!lost.empty()) give_up("no replica is left: " + lost);
    const v1::ClusterHealth health = engine_.health();
    int num_dead = 0;
    std::string latest;
    for (const v1::RankHealth& rank : health.ranks()) {
      if (rank.state() != "dead") continue;
      ++num_dead;
      latest = "rank " + std::to_string(rank.rank()) + " (host " + rank.host() + ") died";
    }
    if (num_dead == num_dead_) return;
    num_dead_ = num_dead;
    death_ = latest;
    death_time_ = Clock::now();
  }

  // A signal came. Throws if a death is its cause.
  void wait_for_explanation() {
    const Clock::time_point until = Clock::now() + kDeathMayFollow;
    for (;;) {
      look_for_deaths();
      if (death_time_ && Clock::now() - *death_time_ < kDeathExplains) {
        give_up(death_ + ", and the launcher ends the job");
      }
      const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
      if (left.count() <= 0) return;
      if (stop_.wait(left) == StopSignal::Event::kSignal) hurry_ = true;
    }
  }

  void drain() {
    log_info("ending: no more requests; " + std::to_string(engine_.load().running()) +
             " run and have 30 s; a second signal ends them at once");
    service_.drain();
    const Clock::time_point until = Clock::now() + kDrainTime;
    while (!hurry_ && Clock::now() < until && !engine_.wait_idle(kIdlePoll)) {
      look_for_deaths();
      if (stop_.take_signal()) hurry_ = true;
    }
  }

  [[noreturn]] void give_up(const std::string& why) {
    end_reason_ = why;
    throw Error(Code::kUnavailable, "cannot go on: " + why);
  }

  StopSignal& stop_;
  std::atomic<bool>& drain_asked_;
  Service& service_;
  Engine& engine_;
  std::string end_reason_ = "the server is ending; ask another one";
  int num_dead_ = 0;
  std::string death_;  // the latest
  std::optional<Clock::time_point> death_time_;
  bool hurry_ = false;
};

ServerOptions server_options(const ServeFlags& flags) {
  ServerOptions options;
  options.listen = flags.listen;
  options.address_file = flags.address_file;
  options.tls_cert = flags.tls_cert;
  options.tls_key = flags.tls_key;
  options.tls_client_ca = flags.tls_client_ca;
  options.has_token = !flags.token_file.empty();
  options.allow_insecure = flags.allow_insecure;
  return options;
}

void say_listening(const Job& job, const ServeFlags& flags, const std::string& address) {
  const size_t workers = static_cast<size_t>(job.topology().ranks_size());
  std::string client = "--server " + address;
  if (!flags.token_file.empty()) client += " --token_file " + flags.token_file;
  if (!flags.tls_cert.empty()) client += " --tls_ca CA.pem";
  std::cerr << "listening on " << address << " (" << workers
            << (workers == 1 ? " worker, " : " workers, ") << job.model().name() << " in "
            << dtype_summary(job.placement()) << ", context " << job.placement().context() << ")\n"
            << "Try:\n"
            << "  trireme chat " << client << " \"What is the capital of France?\"\n"
            << "  trireme chat " << client << '\n';
}

// gRPC's listener ends for good when a connection comes and no descriptor is left, so that a client
// with a thousand connections would be the last: as many as the system grants.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);  // what was granted before still serves
}

}  // namespace

int serve(const Options& options) {
  raise_descriptor_limit();
  StopSignal stop;
  std::atomic<bool> drain_asked{false};
  const ServeFlags& flags = options.serve;
  std::optional<Job> job;  // outlives the server, whose calls use it
  Service service(flags.token_file.empty() ? "" : read_token_file(flags.token_file));
  service.set_drain_listener([&] {
    drain_asked = true;
    stop.poke();
  });
  // Before anything slow: a port in use is said at once, and whoever calls early hears why to wait.
  Server server(server_options(flags), service);

  job.emplace(options);
  service.announce(job->topology(), job->placement());
  std::cerr << placement_table(job->topology(), job->model(), job->placement());
  job->load([&] { return stop.take_signal(); },
            [&] {
              service.refresh_health();
              stop.poke();
            });
  Session session(stop, drain_asked, service, job->engine());
  service.start_serving(
      {job->model(), job->tokenizer(), job->chat_format(), job->placement().context()},
      job->engine());
  server.publish_address();
  say_listening(*job, flags, server.address());
  session.run();
  return 0;
}

}  // namespace trireme
