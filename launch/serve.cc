// SPDX-License-Identifier: Apache-2.0
#include "launch/serve.h"

#include <sys/resource.h>

#include <atomic>
#include <iostream>
#include <optional>

#include "coordinator/server.h"
#include "coordinator/service.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "launch/job.h"
#include "launch/placement_table.h"
#include "launch/plan.h"
#include "launch/session.h"
#include "launch/stop_signal.h"
#include "topology/device_map.h"
#include "topology/shard.h"

namespace trireme {
namespace {

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
            << dtype_summary(job.placement()) << ", context " << job.served_model().context << ")\n"
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

std::string serve(const Options& options, StatusFile& status_file) {
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
  status_file.set_address(server.address());

  try {
    job.emplace(options);
  } catch (const Error& error) {
    // Before there is a placement to name it by, a rank that is missing or lost is in the words.
    if (error.code() == Code::kUnavailable || error.code() == Code::kDeadlineExceeded) {
      const std::string line = std::string("first failure: ") + error.what();
      log_error(line);
      status_file.set_first_failure(line);
    }
    throw;
  }
  service.announce(job->topology(), job->placement(), job->engine());
  if (!flags.save_plan.empty()) {
    write_flag_file(flags.save_plan, placement_to_json(job->placement()) + "\n", "--save_plan");
  }
  std::cerr << placement_table(job->topology(), job->model(), job->placement());
  status_file.set_state(StatusFile::State::kLoading);
  try {
    job->load([&] { return stop.take_signal(); },
              [&] {
                service.refresh_health();
                stop.poke();
              });
  } catch (const Error&) {
    status_file.set_first_failure(job->engine().roster().first_failure());
    throw;
  }
  service.announce(job->topology(), job->placement(),
                   job->engine());  // with the KV blocks there are
  Session session(options, stop, drain_asked, service, job->engine(), status_file);
  service.start_serving(job->served_model(), job->engine());
  server.publish_address();
  status_file.set_state(StatusFile::State::kServing);
  say_listening(*job, flags, server.address());
  return session.run();
}

}  // namespace trireme
