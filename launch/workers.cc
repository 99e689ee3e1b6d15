// SPDX-License-Identifier: Apache-2.0
#include "launch/workers.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/base/printable.h"
#include "launch/job.h"
#include "launch/links.h"
#include "launch/preflight.h"
#include "launch/speeds.h"
#include "launch/watchdog.h"
#include "topology/machine_topology.h"
#include "topology/probe.h"
#include "topology/topology.h"
#include "worker/comm/control.h"
#include "worker/comm/local.h"
#include "worker/comm/mpi.h"
#include "worker/comm/network.h"
#include "worker/facts.h"
#include "worker/worker.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using SteadyClock = std::chrono::steady_clock;

constexpr milliseconds kLeaveTimeout{1000};
constexpr milliseconds kPollInterval{2};

void send_to_all(Channel& channel, int count, const ToWorker& message) {
  for (int rank = 1; rank <= count; ++rank) channel.send(rank, message);
}

// Ends every worker that is still there: by Shutdown, which it reads between micro-batches, and
// failing that by Abandon, which ends the wait for a peer that it may be in. True if all have left
// in time.
bool shut_down(Channel& channel, int count, const std::function<int()>& num_left) {
  ToWorker shutdown;
  shutdown.mutable_shutdown();
  ToWorker abandon;
  abandon.mutable_abandon()->set_reason("the job is ending");
  for (const bool first : {true, false}) {
    if (!first) send_to_all(channel, count, abandon);
    send_to_all(channel, count, shutdown);
    const auto deadline = SteadyClock::now() + kLeaveTimeout;
    while (num_left() > 0 && SteadyClock::now() < deadline) {
      std::this_thread::sleep_for(kPollInterval);
    }
    if (num_left() == 0) return true;
  }
  return false;
}

// ---- workers as threads ----

class LocalWorkers : public Workers {
 public:
  LocalWorkers(int count, const Options& options)
      : count_(count),
        num_running_(count),
        hub_(make_local_hub(count)),
        channel_(make_local_channel(hub_)) {
    for (int rank = 1; rank <= count; ++rank) {
      threads_.emplace_back([this, rank, options] {
        run(rank, options);
        --num_running_;
      });
    }
  }

  ~LocalWorkers() override {
    shut_down(*channel_, count_, [this] { return num_running_.load(); });
    for (std::thread& thread : threads_) thread.join();
  }

  Channel& channel() override { return *channel_; }
  int count() const override { return count_; }

 private:
  void run(int rank, const Options& options) {
    const auto channel = make_local_worker_channel(hub_, rank);
    const auto transport =
        make_local_transport(hub_, rank, channel->cancellation(), channel->progress());
    Hello hello = introduce(rank, options, "");
    hello.mutable_info()->set_interface("lo");
    Worker(hello, options.placement.model, *channel, *transport).run();
  }

  int count_;
  std::atomic<int> num_running_;  // workers that have not returned
  std::shared_ptr<LocalHub> hub_;
  std::unique_ptr<Channel> channel_;
  std::vector<std::thread> threads_;
};

// ---- workers as ranks of the MPI job ----

std::unique_ptr<MpiJob> mpi_job;  // of this process; ended by finish_process()

// Joins the MPI job.
void start_mpi(const Options& options) {
  const milliseconds timeout = options.placement.start_timeout;
  const Watchdog watchdog(
      timeout, "cannot start: MPI_Init has not returned within " + std::to_string(timeout.count()) +
                   " ms in rank " + std::to_string(options.launch.rank) + " of " +
                   std::to_string(options.launch.num_ranks) + " on " + host_name() +
                   "; a rank without this line did not start, or its host cannot be reached from "
                   "here: look at the launcher's output, and which interfaces MPI takes (Open MPI: "
                   "--mca btl_tcp_if_include and --mca oob_tcp_if_include)");
  mpi_job = std::make_unique<MpiJob>();
  if (mpi_job->size() == options.launch.num_ranks) return;
  throw Error(Code::kFailedPrecondition,
              "cannot start: the launcher started " + std::to_string(options.launch.num_ranks) +
                  " ranks, and the MPI of this program (" + mpi_job->library_version() + ") sees " +
                  std::to_string(mpi_job->size()) +
                  ": another MPI's mpirun or srun --mpi started it; start it with those of this "
                  "MPI (launch/trireme-run finds them)");
}

// The same at both ends: a worker that gave up earlier would end what rank 0 still waits for.
ControlLimits limits_of(const Options& options) {
  ControlLimits limits;
  limits.dead_after = options.serve.dead_after;
  return limits;
}

// Where this rank runs: its host's name, and what its loopback interface reaches.
std::string describe_place() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code error;
  const auto network = std::filesystem::read_symlink("/proc/self/ns/net", error);
  return host_name() + "\n" + boot + " " + network.string();
}

// Of this worker's connection to rank 0.
std::string control_interface(const ControlAddress& address) {
  for (const OwnConnection& connection : own_connections()) {
    if (connection.remote_port == address.port &&
        std::ranges::find(address.hosts, connection.remote) != address.hosts.end()) {
      return interface_with(connection.local);
    }
  }
  return address.hosts.empty() ? "" : interface_towards(address.hosts.front());
}

class MpiWorkers : public Workers {
 public:
  explicit MpiWorkers(const Options& options) {  // REQUIRES: start_mpi() returned
    count_ = mpi_job->size() - 1;
    const milliseconds timeout = options.placement.start_timeout;
    try {
      const bool one_host = find_hosts(timeout);
      server_ = make_control_server(count_, one_host, limits_of(options));
      mpi_job->broadcast(server_->address().serialise(), timeout);
      server_->wait_for_workers(timeout, hosts_);
    } catch (const Error&) {
      mpi_job->abandon();  // Finalize would wait for who is missing
      throw;
    }
  }

  ~MpiWorkers() override {
    // Finalize would wait for ever for a rank that died or hangs.
    const bool whole = server_->connected() == count_;
    const bool all_left = shut_down(*server_, count_, [this] { return server_->connected(); });
    if (!whole || !all_left) mpi_job->abandon();
  }

  Channel& channel() override { return *server_; }
  int count() const override { return count_; }
  int control_port() const override { return server_->address().port; }
  std::vector<std::string> hosts() const override { return hosts_; }

 private:
  // True if one loopback interface reaches all ranks.
  bool find_hosts(milliseconds timeout) {
    std::set<std::string> networks;
    std::vector<Place> places;
    for (const std::string& place : mpi_job->gather(describe_place(), timeout)) {
      const size_t end = std::min(place.find('\n'), place.size());
      const std::string network = place.substr(end);
      hosts_.push_back(printable(place.substr(0, end)));
      const size_t space = network.find(' ');
      places.push_back(
          {hosts_.back(), space == std::string::npos ? "" : network.substr(1, space - 1)});
      networks.insert(network);
    }
    require_names(places);
    return networks.size() == 1;
  }

  int count_ = 0;
  std::vector<std::string> hosts_;  // by rank
  std::unique_ptr<ControlServer> server_;
};

}  // namespace

void Workers::greet(const Hello& own, const Options& options) {
  const PlacementFlags& flags = options.placement;
  const std::vector<Hello> hellos =
      trireme::greet(channel(), count(), own, hosts(), flags.start_timeout);
  for (const Hello& hello : hellos) *topology_.add_ranks() = hello.info();
  share_nodes(topology_, flags.threads);
  measure_links(channel(), hellos, control_port(), flags.start_timeout, topology_);
  machines_ = join_machines(topology_);
  const bool one_process = own.facts().must_agree().empty();
  if (!one_process) {
    char text[96];
    std::snprintf(text, sizeof text,
                  "preflight: %d ranks agree in %d fields; %.2f s since MPI_Init", count() + 1,
                  own.facts().must_agree_size(),
                  std::chrono::duration<double>(SteadyClock::now() - begun_).count());
    log_info(text);
    const std::string unused = describe_unused_cores(topology_, machines_);
    if (!unused.empty()) log_warn(unused);
  }
  const bool shown = options.command == Options::Command::kProbe;
  const bool planned = flags.device_map == "auto" && count() > 1;
  if (!shown && !planned) return;
  SpeedOptions speeds;
  speeds.isa = flags.isa;
  speeds.build = build_id() + (one_process ? " threads" : " MPI");
  speeds.anew = shown;
  speeds.told = !shown;
  speeds.one_process = one_process;
  const std::string& cache = options.launch.cache_folder;
  speeds.file = cache.empty() ? "" : cache + "/trireme/speeds.json";
  speeds.timeout = flags.start_timeout;
  nccl_ways_ = measure_speeds(channel(), speeds, topology_);
}

std::unique_ptr<Workers> form_workers(const Options& options) {
  const PlacementFlags& flags = options.placement;
  if (options.launch.num_ranks > 1) {
    start_mpi(options);
    auto workers = std::make_unique<MpiWorkers>(options);
    try {
      workers->greet(introduce(0, options, mpi_job->library_version()), options);
    } catch (const Error& error) {
      // Ranks that disagree leave together; of others one may hang, or has left messages behind.
      if (error.code() != Code::kFailedPrecondition) mpi_job->abandon();
      throw;
    }
    return workers;
  }
  constexpr int64_t kMaxThreads = 256;
  int64_t count = 1;
  for (const std::optional<int32_t>& degree : {flags.tp, flags.pp, flags.dp}) {
    count *= degree.value_or(1);
    if (count >= 1 && count <= kMaxThreads) continue;  // three degrees may be beyond 64 bits
    throw Error(Code::kInvalidArgument,
                "cannot start: --tp x --pp x --dp is " + std::to_string(count) +
                    " or more, without a launcher it must be 1 to " + std::to_string(kMaxThreads));
  }
  auto workers = std::make_unique<LocalWorkers>(static_cast<int>(count), options);
  workers->greet(introduce(0, options, ""), options);
  return workers;
}

int run_worker(const Options& options) {
  start_mpi(options);
  const milliseconds timeout = options.placement.start_timeout;
  try {
    set_log_rank(mpi_job->rank());
    mpi_job->gather(describe_place(), timeout);
    const ControlAddress address = ControlAddress::parse(mpi_job->broadcast("", timeout));
    const auto channel = connect_control(address, mpi_job->rank(), timeout, limits_of(options));
    const auto transport = mpi_job->make_transport(channel->cancellation(), channel->progress());
    Hello hello = introduce(mpi_job->rank(), options, mpi_job->library_version());
    hello.mutable_info()->set_interface(control_interface(address));
    const int status = Worker(hello, options.placement.model, *channel, *transport).run();
    if (status != 0) mpi_job->abandon();
    return status;
  } catch (const Error&) {
    mpi_job->abandon();  // Finalize would wait for the others
    throw;
  }
}

int finish_process(int status) {
  if (mpi_job && mpi_job->abandoned() && mpi_job->rank() == 0) mpi_job->abort(status);
  mpi_job.reset();
  return status;
}

}  // namespace trireme
