// SPDX-License-Identifier: Apache-2.0
#include "launch/loading.h"

#include <unistd.h>

#include <cstdio>

#include "kernels/base/log.h"
#include "kernels/base/printable.h"
#include "launch/text_table.h"
#include "topology/placement.h"
#include "topology/topology.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

std::vector<RankInfo> loading_ranks(const Topology& topology, const Placement& placement) {
  std::set<int> placed;
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const int rank : ranks_of(replica)) placed.insert(rank);
  }
  std::vector<RankInfo> ranks;
  for (const RankInfo& rank : topology.ranks()) {
    if (placed.contains(rank.rank())) ranks.push_back(rank);
  }
  return ranks;
}

void print(const std::string& text) { std::fputs(text.c_str(), stderr); }

}  // namespace

Loading::Loading(const Topology& topology, const Placement& placement, bool verify, Roster& roster,
                 std::chrono::milliseconds begin_timeout)
    : verify_(verify),
      roster_(roster),
      begin_deadline_(Clock::now() + begin_timeout),
      check_(loading_ranks(topology, placement)),
      display_(verify ? "loading and verifying" : "loading", isatty(STDERR_FILENO) == 1, print,
               Clock::now()) {
  for (const RankInfo& rank : loading_ranks(topology, placement)) {
    host_of_[rank.rank()] = rank.host();
    const DeviceInfo& device = rank.device();
    if (device.kind() == DEVICE_KIND_CUDA) {
      gpu_of_[rank.rank()] =
          " on GPU " + std::to_string(device.index()) + ", " + printable(device.name()) + ",";
    }
    nodes_[rank.host()].ranks.push_back(rank.rank());
    waiting_.insert(rank.rank());
    unheard_.insert(rank.rank());
    display_.expect(rank.rank(), rank.host());
  }
}

std::vector<int> Loading::node_of(int rank) const { return nodes_.at(host_of_.at(rank)).ranks; }

void Loading::handle(const ChannelEvent& event) {
  roster_.hear(event, Clock::now());
  if (event.kind == ChannelEvent::Kind::kClosed) {
    if (doubt_ && doubt_->rank == event.rank) return;  // it has said why
    fail(event.rank, Code::kUnavailable, " is lost: " + event.reason);
  }
  if (event.kind != ChannelEvent::Kind::kMessage) return;
  const FromWorker& message = event.message;
  if (message.has_failed()) {
    const Failed& failed = message.failed();
    const auto code = static_cast<Code>(failed.code());
    const std::string why = " failed: " + line_of_rank(failed.message());
    if (code != Code::kUnavailable && code != Code::kCancelled) fail(event.rank, code, why);
    const int blamed = failed.waiting_for_size() > 0 ? failed.waiting_for(0) : 0;
    if (!doubt_) doubt_ = {event.rank, blamed, why, Clock::now()};
    return;
  }
  const bool loads = message.has_heartbeat() && message.heartbeat().operation() == OPERATION_LOAD;
  if (loads || message.has_progress() || message.has_ready()) unheard_.erase(event.rank);
  if (!waiting_.contains(event.rank)) return;
  if (message.has_progress()) display_.update(event.rank, message.progress());
  if (message.has_digests()) check_.add(event.rank, message.digests());
  if (message.has_ready()) take_ready(event.rank, message.ready());
}

void Loading::fail(int rank, Code code, const std::string& why) {
  const std::string line = roster_.name(rank) + why;
  roster_.note_failure(rank, line, Clock::now());
  if (doubt_ && doubt_->rank != rank) {
    roster_.note_failure(doubt_->rank, roster_.name(doubt_->rank) + doubt_->why, Clock::now());
  }
  throw Error(code, "cannot load: " + line);
}

void Loading::take_ready(int rank, const Ready& ready) {
  waiting_.erase(rank);
  display_.ready(rank);
  Node& node = nodes_.at(host_of_.at(rank));
  node.bytes_read += ready.bytes_read();
  node.bytes_needed = ready.node_bytes();
  log_info(
      roster_.name(rank) + gpu_of_[rank] + " ready: read " + format_bytes(ready.bytes_read()) +
      ", weights " + format_bytes(ready.weight_bytes()) + ", KV " + format_bytes(ready.kv_bytes()) +
      ", activations " + format_bytes(ready.activation_bytes()) + ", messages " +
      format_bytes(ready.communication_bytes()) + ", " + format_number("%.1f s", ready.load_s()));
}

void Loading::tick() {
  const auto now = Clock::now();
  display_.tick(now);
  if (doubt_ && now - doubt_->when >= kExplainTime) {
    if (host_of_.contains(doubt_->blamed)) {
      fail(doubt_->blamed, Code::kUnavailable,
           " cannot be reached: " + roster_.name(doubt_->rank) + doubt_->why);
    }
    fail(doubt_->rank, Code::kUnavailable, doubt_->why);
  }
  if (unheard_.empty() || now < begin_deadline_) return;
  std::string missing;
  for (const int rank : unheard_) missing += (missing.empty() ? "" : ", ") + roster_.name(rank);
  throw Error(Code::kDeadlineExceeded,
              "cannot load: no answer to the assignment from " + missing +
                  " within --start_timeout; see the lines of those ranks, and whether they run");
}

void Loading::finish() {
  const std::string verified = verify_ ? check_.finish() : "";
  display_.finish(Clock::now());
  for (const auto& [host, node] : nodes_) {
    const auto read = static_cast<double>(node.bytes_read);
    const auto needed = static_cast<double>(node.bytes_needed);
    log_info("host " + host + ": " + std::to_string(node.ranks.size()) +
             (node.ranks.size() == 1 ? " rank" : " ranks") + " read " +
             format_bytes(node.bytes_read) + " of the checkpoint, " +
             format_number("%.3f", needed > 0 ? read / needed : 1) + " x what is needed there");
  }
  if (verify_) log_info(verified);
}

}  // namespace trireme
