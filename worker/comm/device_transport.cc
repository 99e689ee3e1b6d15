// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/device_transport.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "topology/topology.h"
#include "worker/comm/peers.h"
#include "worker/comm/queued_work.h"
#include "worker/comm/staged.h"

namespace trireme {
namespace {

std::string list(std::span<const int> ranks) {
  std::string text = "ranks";
  for (const int rank : ranks) text += " " + std::to_string(rank);
  return text;
}

// 22809 is 2.28.9.
std::string dotted(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::string micros(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f us", seconds * 1e6);
  return text;
}

// "8.0 KiB: 6.1 us at once, 9.0 in parts, 14.2 us by NCCL; …"
std::string tell(const std::vector<PeerTiming>& timings) {
  std::string text;
  for (const PeerTiming& timing : timings) {
    if (!text.empty()) text += "; ";
    text += format_bytes(static_cast<uint64_t>(timing.bytes)) + ": ";
    if (timing.at_once_s > 0) text += micros(timing.at_once_s) + " at once, ";
    text += micros(timing.in_parts_s) + " in parts, " + micros(timing.other_s) + " by NCCL";
  }
  return text;
}

class DeviceTransport final : public Transport {
 public:
  DeviceTransport(Transport& host, Backend& backend, const DeviceTransportOptions& options)
      : host_(host), backend_(backend), options_(options) {
    if (backend.in_host_memory()) return;
    CHECK(options.cancellation != nullptr && options.progress != nullptr, "waits of a GPU's rank");
    work_ = std::make_shared<QueuedWork>(backend, *options.cancellation, options.progress);
    if (!options.nccl_ranks.contains(options.rank)) return;
    nccl_ = make_nccl(backend, work_, options.nccl);
  }

  std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int tag) override {
    const bool on_gpus = ranks.size() > 1 && all_in(options_.gpu_ranks, ranks);
    const bool wanted = options_.peer_sums != PeerSums::kNever;
    if (!on_gpus || !(wanted || options_.deterministic)) return make_edge(ranks, tag);
    std::unique_ptr<Communicator> host = host_.make_group(ranks, tag);
    std::string why = "--peer_sums is never";
    std::unique_ptr<PeerGroup> peers;
    if (wanted) peers = meet_peers(*host, ranks, backend_, work_, why);
    if (peers == nullptr) return without_peers(ranks, tag, std::move(host), why);
    if (!by_nccl(ranks) || options_.deterministic || options_.peer_sums == PeerSums::kAlways) {
      std::unique_ptr<Communicator> other =
          by_nccl(ranks) ? join_nccl(ranks, tag) : stage(ranks, std::move(host));
      return with_peers(ranks, std::move(other), std::move(peers),
                        fixed_limits(static_cast<int>(ranks.size())), "");
    }
    std::unique_ptr<Communicator> other = join_nccl(ranks, tag);
    std::vector<PeerTiming> timings;
    const PeerLimits limits = measure_limits(*host, *other, *peers, backend_, timings);
    if (limits.most == 0) leave_peers(*host, std::move(peers));
    return with_peers(ranks, std::move(other), std::move(peers), limits, tell(timings));
  }

  std::unique_ptr<Communicator> make_edge(std::span<const int> ranks, int tag) override {
    return by_nccl(ranks) ? join_nccl(ranks, tag) : stage(ranks, host_.make_group(ranks, tag));
  }

 private:
  static bool all_in(const std::set<int>& set, std::span<const int> ranks) {
    return std::all_of(ranks.begin(), ranks.end(), [&](int rank) { return set.contains(rank); });
  }
  bool by_nccl(std::span<const int> ranks) const {
    return ranks.size() > 1 && all_in(options_.nccl_ranks, ranks);
  }
  // The first rank speaks for the group.
  void say(std::span<const int> ranks, const std::string& text) const {
    if (ranks.size() > 1 && ranks.front() == options_.rank) log_info(text);
  }

  std::unique_ptr<Communicator> stage(std::span<const int> ranks,
                                      std::unique_ptr<Communicator> host) {
    if (backend_.in_host_memory()) return host;
    say(ranks, "tensors of " + list(ranks) + " go through host memory");
    return stage_through_host(std::move(host), backend_, [work = work_] { work->settle(); });
  }

  std::unique_ptr<Communicator> join_nccl(std::span<const int> ranks, int tag) {
    say(ranks, "tensors of " + list(ranks) + " go by NCCL " + dotted(nccl_->version()));
    const auto self = std::find(ranks.begin(), ranks.end(), options_.rank);
    CHECK(self != ranks.end(), "a group is made by its members");
    std::string key;
    if (self == ranks.begin()) {
      key = nccl_->make_key();
      options_.keys->give(tag, key, ranks.subspan(1));
    } else {
      key = options_.keys->take(tag);
    }
    return nccl_->make_group(ranks, static_cast<int>(self - ranks.begin()), key);
  }

  std::unique_ptr<Communicator> with_peers(std::span<const int> ranks,
                                           std::unique_ptr<Communicator> other,
                                           std::unique_ptr<PeerGroup> peers,
                                           const PeerLimits& limits, const std::string& measured) {
    std::string text = "sums of " + list(ranks);
    if (limits.most == 0) {
      text += " go by NCCL";
    } else {
      if (limits.most < INT64_MAX) {
        text += " of up to " + format_bytes(static_cast<uint64_t>(limits.most));
      }
      text += " go by the memory of their GPUs, of up to " +
              format_bytes(static_cast<uint64_t>(limits.at_once)) + " at once";
    }
    if (!measured.empty()) text += " (" + measured + ")";
    say(ranks, text + "; --peer_sums chooses");
    if (limits.most == 0) return other;
    return sum_over_peers(std::move(other), std::move(peers), limits);
  }

  std::unique_ptr<Communicator> without_peers(std::span<const int> ranks, int tag,
                                              std::unique_ptr<Communicator> host,
                                              const std::string& why) {
    if (options_.peer_sums == PeerSums::kAlways) {
      throw Error(Code::kFailedPrecondition,
                  "cannot sum " + list(ranks) +
                      " by the memory of their GPUs, as --peer_sums says: " + why +
                      "; leave it at auto");
    }
    // NCCL sums two ranks in one order only.
    if (options_.deterministic && by_nccl(ranks) && ranks.size() > 2) {
      say(ranks, "sums of " + list(ranks) +
                     " are slow: --deterministic has no use for NCCL's, whose order of addition "
                     "depends on their size, and not by the memory of their GPUs: " +
                     why);
      return stage(ranks, std::move(host));
    }
    say(ranks, "no sums of " + list(ranks) + " by the memory of their GPUs: " + why);
    return by_nccl(ranks) ? join_nccl(ranks, tag) : stage(ranks, std::move(host));
  }

  Transport& host_;
  Backend& backend_;
  const DeviceTransportOptions options_;
  std::shared_ptr<QueuedWork> work_;  // of a GPU
  std::shared_ptr<Nccl> nccl_;        // where this rank may use it
};

}  // namespace

std::set<int> gpu_ranks(const Placement& placement) {
  std::set<int> ranks;
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const StageSpec& stage : replica.stages()) {
      for (const ShardSpec& shard : stage.shards()) {
        if (shard.device() == DEVICE_KIND_CUDA) ranks.insert(shard.rank());
      }
    }
  }
  return ranks;
}

std::unique_ptr<Transport> make_device_transport(Transport& host, Backend& backend,
                                                 const DeviceTransportOptions& options) {
  return std::make_unique<DeviceTransport>(host, backend, options);
}

}  // namespace trireme
