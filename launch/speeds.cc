// SPDX-License-Identifier: Apache-2.0
#include "launch/speeds.h"

#include <algorithm>
#include <ctime>
#include <iostream>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "launch/group_keys.h"
#include "launch/preflight.h"
#include "launch/speed_cache.h"
#include "launch/text_table.h"
#include "topology/measured_speeds.h"
#include "topology/topology.h"
#include "worker/facts.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;
using SteadyClock = std::chrono::steady_clock;

constexpr milliseconds kPollInterval{1};
constexpr milliseconds kGrace{2000};  // for the reports, beyond the workers' own time-outs
constexpr int kMostLooks = 3;         // at what seems slow
constexpr milliseconds kLookTime{700};
constexpr size_t kMostRows = 24;
constexpr size_t kShownWords = 8;

// Whether its cgroup stops it before its threads have had a core each.
bool is_throttled(const DeviceInfo& device) {
  return device.cpu_quota() > 0 && device.cpu_quota() < device.threads();
}

class Measurement {
 public:
  Measurement(Channel& channel, const SpeedOptions& options, const Topology& topology)
      : channel_(channel), options_(options), topology_(topology) {
    hosts_.emplace_back();  // rank 0's
    for (const RankInfo& rank : topology.ranks()) {
      hosts_.resize(std::max<size_t>(hosts_.size(), static_cast<size_t>(rank.rank()) + 1));
      hosts_[static_cast<size_t>(rank.rank())] = rank.host();
      nodes_[rank.host()].push_back(&rank);
    }
  }

  // Of every rank. `known_since`: when the oldest of it was measured, if nobody had to measure now.
  SpeedReports run(std::optional<int64_t>& known_since) {
    const int64_t now = std::time(nullptr);
    SpeedCache cache(options_.file, now);
    SpeedReports reports;
    std::set<std::string> unknown;
    int64_t oldest = now;
    for (const auto& [host, ranks] : nodes_) {
      const NodeSpeeds* const known = options_.anew ? nullptr : cache.find(key(host));
      if (known == nullptr || !take_known(host, *known, reports)) {
        unknown.insert(host);
      } else {
        oldest = std::min(oldest, known->measured_at_unix_s());
      }
    }
    if (unknown.empty()) {
      known_since = oldest;
      return reports;
    }
    choose_nccl_ways(unknown);
    measure(unknown, true, reports);
    // The machine may have had other work in that moment.
    const auto begun = SteadyClock::now();
    std::set<std::string> doubtful = doubtful_of(unknown, reports);
    for (int look = 1; look < kMostLooks && !doubtful.empty(); ++look) {
      if (SteadyClock::now() - begun > kLookTime) break;  // too busy to say more
      measure(doubtful, false, reports);
      doubtful = doubtful_of(unknown, reports);
    }
    for (const std::string& host : unknown) {
      if (doubtful.contains(host)) continue;  // or for longer: the next start looks again
      NodeSpeeds node;
      node.set_key(key(host));
      node.set_measured_at_unix_s(now);
      for (const RankInfo* rank : nodes_.at(host)) *node.add_reports() = reports.at(rank->rank());
      cache.keep(node);
    }
    cache.save();
    return reports;
  }

  const std::map<int, NcclSettings>& nccl_ways() const { return nccl_ways_; }

 private:
  // Where one of `hosts` has ranks that reduce by NCCL, which reads its variables once. Nobody
  // knows yet which ranks will be one replica: it may be any.
  void choose_nccl_ways(const std::set<std::string>& hosts) {
    std::set<int> able;
    bool used = false;
    for (const auto& [host, ranks] : nodes_) {
      size_t here = 0;
      for (const RankInfo* rank : ranks) {
        if (!has_nccl(*rank)) continue;
        able.insert(rank->rank());
        ++here;
      }
      used = used || (here > 1 && hosts.contains(host));
    }
    if (!used) return;
    for (const RankInfo& rank : topology_.ranks()) {
      if (!able.contains(rank.rank())) continue;
      NcclSettings& ways = nccl_ways_[rank.rank()];
      ways = choose_nccl_settings(topology_, able, rank.rank(), rank.nccl_variables());
      // Threads that find all of it set do not change what others read.
      if (options_.one_process) set_nccl_variables(variables_of(ways));
    }
  }

  std::string key(const std::string& host) const {
    std::string text = options_.build + "\n" + options_.isa;
    for (const RankInfo* rank : nodes_.at(host)) {
      const DeviceInfo& device = rank->device();
      text += "\n" + device.name() + "\n" + device.isa() + "\n" + std::to_string(device.threads()) +
              " " + std::to_string(device.cpu_quota()) + " " + device.pci_id() + " " +
              std::to_string(rank->nccl_version());
      for (const int32_t cpu : device.cpus()) text += " " + std::to_string(cpu);
    }
    return host + " " + digest_text(text);
  }

  // The first rank of a node reports for all of its groups.
  std::vector<int32_t> degrees(const RankInfo& rank) const {
    const auto& ranks = nodes_.at(rank.host());
    if (ranks.front()->rank() != rank.rank()) return {};
    return reduce_degrees(ranks.size());
  }

  // Those of `hosts` that have a rank which seems slow.
  std::set<std::string> doubtful_of(const std::set<std::string>& hosts,
                                    const SpeedReports& reports) const {
    std::set<std::string> doubtful;
    for (const int32_t rank : seem_slow(topology_, reports)) {
      const std::string& host = hosts_[static_cast<size_t>(rank)];
      if (hosts.contains(host)) doubtful.insert(host);
    }
    return doubtful;
  }

  bool take_known(const std::string& host, const NodeSpeeds& known, SpeedReports& reports) const {
    const auto& ranks = nodes_.at(host);
    if (static_cast<size_t>(known.reports_size()) != ranks.size()) return false;
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (!is_sound(known.reports(static_cast<int>(i)), degrees(*ranks[i]))) return false;
    }
    for (size_t i = 0; i < ranks.size(); ++i) {
      reports[ranks[i]->rank()] = known.reports(static_cast<int>(i));
    }
    return true;
  }

  SpeedTask task_for(const std::string& host, const RankInfo& rank, bool reduce) {
    const auto& ranks = nodes_.at(host);
    SpeedTask task;
    task.set_isa(options_.isa);
    task.set_threads(rank.device().threads());
    task.set_throttled(is_throttled(rank.device()));
    task.set_sharers(static_cast<int32_t>(ranks.size()));
    task.set_memory_bytes(rank.device().memory_bytes());
    task.set_timeout_ms(static_cast<int32_t>(options_.timeout.count()));
    task.set_device(rank.device().kind());
    task.set_device_index(rank.device().index());
    if (!reduce) return task;
    for (const RankInfo* other : ranks) {
      const bool same = other->nccl_version() == rank.nccl_version();
      if (has_nccl(rank) && has_nccl(*other) && same) task.add_nccl_ranks(other->rank());
    }
    const auto ways = nccl_ways_.find(rank.rank());
    if (ways != nccl_ways_.end()) *task.mutable_nccl_settings() = variables_of(ways->second);
    int tag = 0;  // the same on every node: they have no rank in common
    for (const int32_t tp : reduce_degrees(ranks.size())) {
      SpeedGroup group;
      for (int32_t i = 0; i < tp; ++i) group.add_ranks(ranks[static_cast<size_t>(i)]->rank());
      group.set_tag(tag);
      tag += 2;
      const auto& members = group.ranks();
      if (std::find(members.begin(), members.end(), rank.rank()) != members.end()) {
        *task.add_groups() = group;
      }
    }
    return task;
  }

  std::set<int> ranks_beside(int rank) const {
    std::set<int> ranks;
    for (const RankInfo* other : nodes_.at(hosts_[static_cast<size_t>(rank)])) {
      ranks.insert(other->rank());
    }
    return ranks;
  }

  // Without all-reduces it is another look: the best one counts.
  void measure(const std::set<std::string>& hosts, bool reduce, SpeedReports& reports) {
    std::map<int, const RankInfo*> waiting;
    for (const std::string& host : hosts) {
      for (const RankInfo* rank : nodes_.at(host)) {
        ToWorker message;
        *message.mutable_speeds() = task_for(host, *rank, reduce);
        channel_.send(rank->rank(), message);
        waiting[rank->rank()] = rank;
      }
    }
    const auto deadline = SteadyClock::now() + options_.timeout + kGrace;
    while (!waiting.empty()) {
      const auto event = channel_.poll();
      if (!event) {
        if (SteadyClock::now() > deadline) fail_silent(waiting);
        std::this_thread::sleep_for(kPollInterval);
        continue;
      }
      require_life(*event, hosts_);
      if (event->message.has_group_key()) {
        relay_key(channel_, event->rank, event->message.group_key(), ranks_beside(event->rank));
      }
      const auto from = waiting.find(event->rank);
      if (event->kind != ChannelEvent::Kind::kMessage || !event->message.has_speeds() ||
          from == waiting.end()) {
        continue;
      }
      take(*from->second, event->message.speeds(), reduce, reports);
      waiting.erase(from);
    }
  }

  void take(const RankInfo& rank, const SpeedReport& report, bool reduce, SpeedReports& reports) {
    if (!is_sound(report, reduce ? degrees(rank) : std::vector<int32_t>())) {
      throw Error(Code::kInternal, "cannot start: " + rank_name(rank.rank(), hosts_) +
                                       " reports speeds that no device has, or was not asked for");
    }
    if (reduce) {
      reports[rank.rank()] = report;
      return;
    }
    SpeedReport& known = reports.at(rank.rank());
    known.set_memory_bandwidth_bytes_per_s(
        std::max(known.memory_bandwidth_bytes_per_s(), report.memory_bandwidth_bytes_per_s()));
    known.set_flops_16bit_per_s(std::max(known.flops_16bit_per_s(), report.flops_16bit_per_s()));
  }

  [[noreturn]] void fail_silent(const std::map<int, const RankInfo*>& waiting) const {
    std::string missing;
    for (const auto& [rank, info] : waiting) {
      missing += (missing.empty() ? "" : ", ") + rank_name(rank, hosts_);
    }
    throw Error(Code::kDeadlineExceeded,
                "cannot start: no measurement of devices within " +
                    std::to_string((options_.timeout + kGrace).count() / 1000) + " s from " +
                    missing + "; see whether they still run, and what else their hosts do");
  }

  Channel& channel_;
  const SpeedOptions& options_;
  const Topology& topology_;
  std::vector<std::string> hosts_;  // by rank
  std::map<std::string, std::vector<const RankInfo*>> nodes_;
  std::map<int, NcclSettings> nccl_ways_;
};

// "least-greatest", or the one number where they are alike.
std::string spread(const std::vector<double>& values) {
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  const std::string low = three_figures(*least), high = three_figures(*greatest);
  return low == high ? low : low + "-" + high;
}

struct Row {
  std::set<std::string> hosts;
  std::vector<double> bandwidth, flops;
  std::string reduce;
};

// "TP2 12, TP4 25": of the smallest message.
std::string reduce_text(const Topology& topology, const Island& island) {
  std::string text;
  for (const AllReduceTable& table : topology.all_reduce_tables()) {
    if (table.name() != island.all_reduce_table()) continue;
    for (const AllReduceRow& row : table.rows()) {
      if (!row.measured() || row.samples().empty()) continue;
      text += (text.empty() ? "TP" : ", TP") + std::to_string(row.tp()) + " " +
              three_figures(row.samples(0).seconds() * 1e6);
    }
  }
  return text;
}

}  // namespace

std::string speed_table(const Topology& topology) {
  std::map<int32_t, std::string> reduce_of;
  for (const Island& island : topology.islands()) {
    for (const int32_t rank : island.ranks()) reduce_of[rank] = reduce_text(topology, island);
  }
  std::map<std::pair<std::string, std::string>, Row> rows;  // by device and all-reduce
  for (const RankInfo& rank : topology.ranks()) {
    const DeviceInfo& device = rank.device();
    if (!device.speed_measured()) continue;
    std::string name = device.kind() == DEVICE_KIND_CUDA
                           ? printable(device.name())
                           : device.isa() + " x" + std::to_string(device.threads());
    if (is_throttled(device)) name += ", quota of " + three_figures(device.cpu_quota()) + " cores";
    if (device.degraded()) name += ", degraded";
    Row& row = rows[{name, reduce_of[rank.rank()]}];
    row.hosts.insert(rank.host());
    row.bandwidth.push_back(device.speed().memory_bandwidth_bytes_per_s() / 1e9);
    row.flops.push_back(device.speed().flops_16bit_per_s() / 1e9);
  }
  if (rows.empty()) return "";
  std::vector<TextRow> text = {
      {"devices", "ranks", "hosts", "memory GB/s", "GFLOP/s", "all-reduce of 8 KiB, µs"}};
  size_t left_out = 0;
  for (const auto& [names, row] : rows) {
    if (text.size() > kMostRows) {
      ++left_out;
      continue;
    }
    const std::string hosts =
        row.hosts.size() == 1 ? *row.hosts.begin() : std::to_string(row.hosts.size());
    text.push_back({names.first, std::to_string(row.bandwidth.size()), printable(hosts),
                    spread(row.bandwidth), spread(row.flops),
                    names.second.empty() ? "-" : names.second});
  }
  std::string table = draw_table(text);
  if (left_out > 0) table += "  and " + std::to_string(left_out) + " kinds more\n";
  return table;
}

std::map<int, NcclSettings> measure_speeds(Channel& channel, const SpeedOptions& options,
                                           Topology& topology) {
  const auto start = SteadyClock::now();
  std::optional<int64_t> known_since;
  Measurement measurement(channel, options, topology);
  const SpeedReports reports = measurement.run(known_since);
  const std::vector<std::string> words = apply_speeds(reports, topology);
  if (!options.told) return measurement.nccl_ways();
  const auto taken = std::chrono::duration_cast<milliseconds>(SteadyClock::now() - start);
  std::cerr << "Devices, measured "
            << (known_since ? age_text(std::time(nullptr) - *known_since) +
                                  " (trireme probe, started as this job, measures again)"
                            : "in " + std::to_string(taken.count()) + " ms")
            << '\n'
            << speed_table(topology);
  for (size_t i = 0; i < std::min(words.size(), kShownWords); ++i) {
    std::cerr << "  degraded: " << printable(words[i]) << '\n';
  }
  if (words.size() > kShownWords) {
    std::cerr << "  and " << words.size() - kShownWords << " more\n";
  }
  return measurement.nccl_ways();
}

}  // namespace trireme
