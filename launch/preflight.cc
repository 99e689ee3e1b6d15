// SPDX-License-Identifier: Apache-2.0
#include "launch/preflight.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "kernels/backend.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/base/printable.h"
#include "kernels/cuda/cuda_device.h"
#include "launch/agreement.h"
#include "topology/nccl_xml.h"
#include "topology/probe.h"
#include "topology/probe_machine.h"
#include "worker/comm/nccl.h"
#include "worker/comm/network.h"
#include "worker/facts.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using SteadyClock = std::chrono::steady_clock;

constexpr milliseconds kPollInterval{1};
// Raised with every change of a message.
constexpr const char* kProtocol = "5";

// Texts of users are not logged: their digest says as well whether they are the same.
bool holds_text(const std::string& flag) {
  return flag == "--prompt" || flag == "--prompt_ids" || flag == "--chat";
}

void state_flags(const Options& options, RankFacts& facts) {
  add_fact(*facts.mutable_must_agree(), "sub-command", options.sub_command);
  for (const auto& [flag, value] : options.flags) {
    if (flag == "--model") continue;  // a node may have it elsewhere: its files are compared
    if (holds_text(flag) && !value.empty()) {
      add_fact(*facts.mutable_must_agree(), flag, digest_text(value));
    } else {
      add_fact(*facts.mutable_must_agree(), flag, value);
    }
  }
}

void add_gpus(int rank, RankInfo& info) {
  const CudaDevices found = cuda_devices();
  if (found.built && found.devices.empty() && rank == 1) {
    log_info("computes on the CPU: found no GPU (" + found.reason + ")");
  }
  if (!found.devices.empty()) {
    const NcclVersion nccl = find_nccl();
    info.set_nccl_version(nccl.number);
    if (nccl.number == 0) log_warn("GPUs exchange tensors through host memory: " + nccl.reason);
  }
  for (size_t index = 0; index < found.devices.size(); ++index) {
    const CudaDevice& device = found.devices[index];
    DeviceInfo& gpu = *info.add_gpus();
    gpu.set_kind(DEVICE_KIND_CUDA);
    gpu.set_name(device.name);
    gpu.set_pci_id(device.pci_id);
    gpu.set_memory_bytes(static_cast<uint64_t>(device.memory_bytes));
    gpu.set_compute_capability(device.compute_capability);
    gpu.set_index(static_cast<int32_t>(index));
  }
}

[[noreturn]] void fail_missing(const std::map<int, Hello>& known, int count,
                               const std::vector<std::string>& hosts, milliseconds timeout) {
  std::string missing;
  for (int rank = 1; rank <= count; ++rank) {
    if (!known.contains(rank)) missing += (missing.empty() ? "" : ", ") + rank_name(rank, hosts);
  }
  throw Error(Code::kDeadlineExceeded,
              "cannot start: no facts within " + std::to_string(timeout.count()) + " ms from " +
                  missing +
                  "; see the lines of those ranks above, and whether the file system of their "
                  "hosts answers");
}

}  // namespace

Hello introduce(int rank, const Options& options, const std::string& mpi) {
  Hello hello;
  RankInfo& info = *hello.mutable_info();
  info.set_rank(rank);
  info.set_host(host_name());
  info.set_pid(getpid());
  const std::string& isa = options.placement.isa;
  for (const std::string& address : reachable_addresses()) hello.add_addresses(address);
  *info.mutable_device() = probe_cpu(isa == "auto" ? cpu_isas().back() : isa);
  // Threads of one process share a view of their node: the first gives it.
  if (rank == 1 || (rank > 1 && !mpi.empty())) {
    info.set_machine(write_nccl_xml(probe_machine(options.probe.sources), true));
  }
  if (rank > 0) add_gpus(rank, info);  // rank 0 computes nothing
  if (info.nccl_version() > 0) {
    for (const auto& [name, value] : options.launch.nccl_variables) {
      (*info.mutable_nccl_variables())[name] = value;
    }
  }
  if (mpi.empty()) return hello;  // a thread of the process that would compare
  RankFacts& facts = *hello.mutable_facts();
  add_fact(*facts.mutable_must_agree(), "protocol", kProtocol);
  add_fact(*facts.mutable_must_agree(), "build", build_id());
  add_fact(*facts.mutable_must_agree(), "MPI", mpi);
  state_flags(options, facts);
  state_model_files(options.placement.model, facts);
  state_machine(info.device(), facts);
  return hello;
}

std::string rank_name(int rank, const std::vector<std::string>& hosts) {
  const auto index = static_cast<size_t>(rank);
  const bool known = rank >= 0 && index < hosts.size() && !hosts[index].empty();
  return "rank " + std::to_string(rank) + (known ? " on " + hosts[index] : "");
}

std::string describe_unused_cores(const Topology& topology, const std::vector<Machine>& machines) {
  std::map<std::string, std::set<int>> used;  // by host
  for (const RankInfo& rank : topology.ranks()) {
    if (rank.device().kind() != DEVICE_KIND_CPU) continue;
    used[rank.host()].insert(rank.device().cpus().begin(), rank.device().cpus().end());
  }
  std::string first;
  int more = 0;
  for (const Machine& machine : machines) {
    size_t cores = 0;
    for (const NumaNode& node : machine.numa) cores += node.cores.size();
    const auto found = used.find(machine.host);
    if (found == used.end() || found->second.empty()) continue;
    if (2 * found->second.size() > cores) continue;
    if (!first.empty()) {
      ++more;
      continue;
    }
    first = "the ranks on " + machine.host + " may run on " + std::to_string(found->second.size()) +
            " of its " + std::to_string(cores) + " cores";
  }
  if (first.empty()) return "";
  if (more > 0) first += ", as on " + std::to_string(more) + " more";
  return first +
         ": where this job has more, its launcher binds them; mpirun --bind-to none, and srun "
         "--cpu-bind=none, leave them all";
}

void require_life(const ChannelEvent& event, const std::vector<std::string>& hosts) {
  const std::string who = "cannot start: " + rank_name(event.rank, hosts);
  if (event.kind == ChannelEvent::Kind::kClosed) {
    throw Error(Code::kUnavailable, who + " ended: " + event.reason);
  }
  if (event.kind == ChannelEvent::Kind::kMessage && event.message.has_failed()) {
    throw Error(Code::kUnavailable, who + " failed: " + event.message.failed().message());
  }
}

void require_names(const std::vector<Place>& places) {
  std::map<std::string, size_t> first;  // rank on it
  for (size_t rank = 0; rank < places.size(); ++rank) {
    if (places[rank].boot_id.empty()) continue;  // not known
    const auto [entry, fresh] = first.emplace(places[rank].host, rank);
    if (fresh || places[entry->second].boot_id == places[rank].boot_id) continue;
    throw Error(Code::kFailedPrecondition,
                "cannot start: ranks " + std::to_string(entry->second) + " and " +
                    std::to_string(rank) + " run on two machines that are both named " +
                    places[rank].host + "; give each a host name of its own");
  }
}

std::vector<Hello> greet(Channel& channel, int count, const Hello& own,
                         const std::vector<std::string>& hosts, milliseconds timeout) {
  std::map<int, Hello> known;
  const auto deadline = SteadyClock::now() + timeout;
  while (static_cast<int>(known.size()) < count) {
    const auto event = channel.poll();
    if (!event) {
      if (SteadyClock::now() > deadline) fail_missing(known, count, hosts, timeout);
      std::this_thread::sleep_for(kPollInterval);
      continue;
    }
    require_life(*event, hosts);
    if (event->kind == ChannelEvent::Kind::kMessage && event->message.has_hello()) {
      known[event->rank] = event->message.hello();
    }
  }
  std::vector<Hello> hellos;
  std::vector<Statement> statements = {{0, own.info().host(), own.facts()}};
  for (auto& [rank, hello] : known) {
    hello.mutable_info()->set_rank(rank);
    hello.mutable_info()->set_host(printable(hello.info().host()));
    statements.push_back({rank, hello.info().host(), hello.facts()});
    hellos.push_back(hello);
  }
  require_agreement("start", statements);
  for (const std::string& line : differences(statements)) log_info("differs: " + line);
  return hellos;
}

}  // namespace trireme
