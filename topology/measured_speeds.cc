// SPDX-License-Identifier: Apache-2.0
#include "topology/measured_speeds.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <tuple>

#include "topology/devices.h"

namespace trireme {
namespace {

constexpr double kOwnSpeed = 0.8;    // of what its like reach: below, noise does not explain it
constexpr double kFarUnder = 0.6;    // degraded
constexpr double kSlowReduce = 2.5;  // times what its like need
constexpr int32_t kMostRow = 8;      // degrees that are no power of two

// Devices that should reach the same: of a kind, as many threads, as many beside it on the node.
using Kind = std::tuple<int, std::string, std::string, int32_t, double, size_t>;

struct Cluster {
  std::map<std::string, std::vector<int>> hosts;  // indices into topology.ranks
  std::map<Kind, std::vector<int>> kinds;
};

// What its threads take of the node's cores.
double cores_used(const DeviceInfo& device) {
  const double quota = device.cpu_quota();
  return quota > 0 ? std::min(quota, double(device.threads())) : device.threads();
}

Kind kind_of(const Cluster& cluster, const RankInfo& rank) {
  const DeviceInfo& device = rank.device();
  return {device.kind(),    device.name(),      device.isa(),
          device.threads(), cores_used(device), cluster.hosts.at(rank.host()).size()};
}

Cluster cluster_of(const Topology& topology, const SpeedReports& reports) {
  Cluster cluster;
  for (int i = 0; i < topology.ranks_size(); ++i) {
    cluster.hosts[topology.ranks(i).host()].push_back(i);
  }
  for (int i = 0; i < topology.ranks_size(); ++i) {
    if (!reports.contains(topology.ranks(i).rank())) continue;
    cluster.kinds[kind_of(cluster, topology.ranks(i))].push_back(i);
  }
  return cluster;
}

// The upper median: of two that differ the better one is what the other should reach.
double typical(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// More work than cores: whoever gets his turn less is no worse a device.
bool is_crowded(const Topology& topology, const std::vector<int>& ranks) {
  std::set<int32_t> cores;
  double used = 0;
  for (const int i : ranks) {
    const DeviceInfo& device = topology.ranks(i).device();
    cores.insert(device.cpus().begin(), device.cpus().end());
    used += cores_used(device);
  }
  return !cores.empty() && used > double(cores.size());
}

std::string share_text(double value, double of, const char* unit) {
  char text[96];
  const char* const format = of < 1000 ? "%.3g %s of %.3g, %.0f %%" : "%.0f %s of %.0f, %.0f %%";
  std::snprintf(text, sizeof text, format, value, unit, of, 100 * value / of);
  return text;
}

// What the kind reaches: its members' typical values, and the table's where makers say them.
struct Expected {
  double bandwidth = 0, flops = 0;
};

Expected expected_of(const Topology& topology, const SpeedReports& reports,
                     const std::vector<int>& members) {
  std::vector<double> bandwidth, flops;
  for (const int i : members) {
    const SpeedReport& report = reports.at(topology.ranks(i).rank());
    bandwidth.push_back(report.memory_bandwidth_bytes_per_s());
    flops.push_back(report.flops_16bit_per_s());
  }
  return {typical(std::move(bandwidth)), typical(std::move(flops))};
}

void set_device(const SpeedReport& report, const Expected& expected, bool crowded,
                DeviceInfo& device) {
  DeviceInfo plain;
  plain.set_kind(device.kind());
  plain.set_name(device.name());
  plain.set_type(device.type());
  const DeviceCost table = device_cost(plain);
  const bool has_table = device.kind() == DEVICE_KIND_CUDA && table.known;
  const auto choose = [&](const char* what, double found, double like, double nominal, double scale,
                          const char* unit) {
    const double best = std::max(like, has_table ? nominal : 0);
    if (!crowded && found < kFarUnder * best) {
      device.set_degraded(true);
      device.set_degraded_reason(
          device.degraded_reason() + (device.degraded_reason().empty() ? "" : "; ") + what + " " +
          share_text(found / scale, best / scale, unit) +
          (like >= nominal || !has_table ? " that its like reach" : " that its type has"));
    }
    return crowded || found >= kOwnSpeed * like ? like : found;
  };
  DeviceSpeed& speed = *device.mutable_speed();
  speed.set_memory_bandwidth_bytes_per_s(
      choose("memory gives", report.memory_bandwidth_bytes_per_s(), expected.bandwidth,
             table.em * table.bandwidth, 1e9, "GB/s"));
  speed.set_memory_efficiency(1);  // measured with the kernel that decodes
  speed.set_flops_16bit_per_s(choose("matrices run at", report.flops_16bit_per_s(), expected.flops,
                                     table.ec * table.flops, 1e9, "GFLOP/s"));
  speed.set_compute_efficiency(1);
  device.set_speed_measured(true);
}

std::string name_of(const RankInfo& rank) {
  return "rank " + std::to_string(rank.rank()) + " on " + rank.host();
}

// ---- all-reduces ----

// The rows of a host's ranks by degree.
std::map<int32_t, AllReduceRow> rows_of(const Topology& topology, const SpeedReports& reports,
                                        const std::vector<int>& ranks) {
  std::map<int32_t, AllReduceRow> rows;
  for (const int i : ranks) {
    const auto report = reports.find(topology.ranks(i).rank());
    if (report == reports.end()) continue;
    for (const AllReduceRow& row : report->second.rows()) rows.emplace(row.tp(), row);
  }
  return rows;
}

// Of one degree on alike hosts: at each size the median.
AllReduceRow merge_rows(const std::vector<const AllReduceRow*>& rows) {
  AllReduceRow merged = **std::min_element(rows.begin(), rows.end(), [](auto* a, auto* b) {
    return a->samples_size() < b->samples_size();
  });
  std::vector<double> alphas, buses;
  for (const AllReduceRow* row : rows) {
    alphas.push_back(row->alpha_s());
    buses.push_back(row->bus_bytes_per_s());
  }
  merged.set_alpha_s(typical(std::move(alphas)));
  merged.set_bus_bytes_per_s(typical(std::move(buses)));
  for (int i = 0; i < merged.samples_size(); ++i) {
    std::vector<double> seconds;
    for (const AllReduceRow* row : rows) seconds.push_back(row->samples(i).seconds());
    merged.mutable_samples(i)->set_seconds(typical(std::move(seconds)));
  }
  return merged;
}

double slowness(const AllReduceRow& row, const AllReduceRow& like) {
  double worst = 0;
  for (int i = 0; i < std::min(row.samples_size(), like.samples_size()); ++i) {
    worst = std::max(worst, row.samples(i).seconds() / like.samples(i).seconds());
  }
  return worst;
}

// The median of the measured links among these ranks; nothing where there is none.
LinkSpeed typical_link(const Topology& topology, const std::set<int32_t>& a,
                       const std::set<int32_t>& b) {
  std::vector<double> latency, bandwidth;
  LinkSpeed speed;
  for (const Link& link : topology.links()) {
    const bool there = (a.contains(link.rank_a()) && b.contains(link.rank_b())) ||
                       (a.contains(link.rank_b()) && b.contains(link.rank_a()));
    if (!there || !link.speed().measured() || link.speed().degraded()) continue;
    speed = link.speed();
    latency.push_back(speed.latency_s());
    bandwidth.push_back(speed.bandwidth_bytes_per_s());
  }
  if (latency.empty()) return speed;
  speed.set_latency_s(typical(std::move(latency)));
  speed.set_bandwidth_bytes_per_s(typical(std::move(bandwidth)));
  return speed;
}

class Tables {
 public:
  Tables(const SpeedReports& reports, const Cluster& cluster, Topology& topology)
      : reports_(reports), cluster_(cluster), topology_(topology) {
    for (const Island& island : topology.islands()) {
      taken_.insert(island.ranks().begin(), island.ranks().end());
    }
    for (const AllReduceTable& table : topology.all_reduce_tables()) names_.insert(table.name());
    for (const auto& [host, ranks] : cluster.hosts) {
      std::multiset<Kind> kinds;
      for (const int i : ranks) kinds.insert(kind_of(cluster, topology.ranks(i)));
      auto rows = rows_of(topology, reports, ranks);
      if (ranks.size() > 1 && !rows.empty()) alike_[kinds].emplace_back(host, std::move(rows));
    }
  }

  std::vector<std::string> add() {
    std::vector<std::string> words;
    for (const auto& [kinds, hosts] : alike_) {
      std::map<int32_t, std::vector<const AllReduceRow*>> by_degree;
      for (const auto& [host, rows] : hosts) {
        for (const auto& [tp, row] : rows) by_degree[tp].push_back(&row);
      }
      std::map<int32_t, AllReduceRow> common;
      for (const auto& [tp, rows] : by_degree) common[tp] = merge_rows(rows);
      const std::string name = add_table(
          hosts.size() == 1 ? "on " + hosts[0].first
                            : "on " + std::to_string(hosts.size()) + " nodes as " + hosts[0].first,
          common);
      for (const auto& [host, rows] : hosts) {
        double worst = 0;
        for (const auto& [tp, row] : rows) worst = std::max(worst, slowness(row, common[tp]));
        const bool slow = worst > kSlowReduce && !is_crowded(topology_, cluster_.hosts.at(host));
        add_island(host, slow ? add_table("on " + host, rows) : name);
        if (!slow) continue;
        char text[32];
        std::snprintf(text, sizeof text, "%.1f", worst);
        words.push_back("all-reduces on " + host + " take up to " + text +
                        " times what its like need");
        note(host, words.back());
      }
    }
    return words;
  }

 private:
  std::string add_table(const std::string& where, const std::map<int32_t, AllReduceRow>& rows) {
    AllReduceTable& table = *topology_.add_all_reduce_tables();
    table.set_name("measured " + where);
    while (!names_.insert(table.name()).second) table.set_name(table.name() + "'");
    table.set_link("within a node");
    for (const auto& [tp, row] : rows) *table.add_rows() = row;
    return table.name();
  }

  void add_island(const std::string& host, const std::string& table) {
    std::set<int32_t> ranks, all;
    for (const int i : cluster_.hosts.at(host)) {
      const int32_t rank = topology_.ranks(i).rank();
      all.insert(rank);
      if (!taken_.contains(rank)) ranks.insert(rank);
    }
    // Of GPUs that their links join what was measured goes in for what the links' class has.
    for (Island& island : *topology_.mutable_islands()) {
      const std::set<int32_t> joined(island.ranks().begin(), island.ranks().end());
      if (joined == all) island.set_all_reduce_table(table);
    }
    if (ranks.size() < 2) return;
    Island& island = *topology_.add_islands();
    for (const int32_t rank : ranks) island.add_ranks(rank);
    const LinkSpeed link = typical_link(topology_, ranks, ranks);
    if (link.measured()) *island.mutable_link() = link;
    island.set_all_reduce_table(table);
  }

  void note(const std::string& host, const std::string& text) {
    for (NodeInfo& node : *topology_.mutable_nodes()) {
      if (node.host() == host) node.add_notes(text);
    }
  }

  const SpeedReports& reports_;
  const Cluster& cluster_;
  Topology& topology_;
  std::set<int32_t> taken_;  // by islands that are there already
  std::set<std::string> names_;
  std::map<std::multiset<Kind>,
           std::vector<std::pair<std::string, std::map<int32_t, AllReduceRow>>>>
      alike_;
};

// What NICs claim gives way to what messages reached.
void set_network(const Cluster& cluster, Topology& topology) {
  std::map<std::string, std::string> group_of;
  for (const NodeInfo& node : topology.nodes()) group_of[node.host()] = node.group();
  const auto ranks_of = [&](const std::string& name) {
    std::set<int32_t> ranks;
    for (const auto& [host, members] : cluster.hosts) {
      if (!name.empty() && host != name && group_of[host] != name) continue;
      for (const int i : members) ranks.insert(topology.ranks(i).rank());
    }
    return ranks;
  };
  Topology between = topology;  // links of two nodes alone
  between.clear_links();
  std::map<int32_t, std::string> host_of;
  for (const RankInfo& rank : topology.ranks()) host_of[rank.rank()] = rank.host();
  for (const Link& link : topology.links()) {
    if (host_of[link.rank_a()] != host_of[link.rank_b()]) *between.add_links() = link;
  }
  for (NetworkLink& network : *topology.mutable_network()) {
    if (network.rail_aligned()) continue;
    LinkSpeed found = typical_link(between, ranks_of(network.a()), ranks_of(network.b()));
    if (!found.measured()) continue;
    found.set_link_class(LINK_CLASS_NET);
    if (found.nominal_bandwidth_bytes_per_s() == 0) {
      found.set_nominal_bandwidth_bytes_per_s(network.speed().nominal_bandwidth_bytes_per_s());
    }
    *network.mutable_speed() = found;
  }
}

}  // namespace

std::vector<int32_t> reduce_degrees(size_t count) {
  std::vector<int32_t> degrees;
  for (const int32_t tp : {2, 4, 8, 16}) {
    if (static_cast<size_t>(tp) <= count) degrees.push_back(tp);
  }
  const auto all = static_cast<int32_t>(std::min<size_t>(count, kMostRow));
  if (all >= 2 && std::find(degrees.begin(), degrees.end(), all) == degrees.end()) {
    degrees.insert(std::upper_bound(degrees.begin(), degrees.end(), all), all);
  }
  return degrees;
}

// NaN fails every comparison, so what is wanted is stated.
bool is_sound(const SpeedReport& report, const std::vector<int32_t>& degrees) {
  constexpr int kMostSamples = 64;
  const auto within = [](double value, double least, double most) {
    return value >= least && value <= most;
  };
  bool sound = within(report.memory_bandwidth_bytes_per_s(), 1e6, 1e14) &&
               within(report.flops_16bit_per_s(), 1e6, 1e17) &&
               report.rows_size() == static_cast<int>(degrees.size());
  for (int i = 0; sound && i < report.rows_size(); ++i) {
    const AllReduceRow& row = report.rows(i);
    sound = row.tp() == degrees[static_cast<size_t>(i)] && within(row.alpha_s(), 0, 60) &&
            within(row.bus_bytes_per_s(), 1, 1e14) && row.samples_size() >= 1 &&
            row.samples_size() <= kMostSamples;
    uint64_t bytes = 0;
    for (const AllReduceSample& sample : row.samples()) {
      sound = sound && sample.bytes() > bytes && within(sample.seconds(), 1e-9, 3600);
      bytes = sample.bytes();
    }
  }
  return sound;
}

std::vector<int32_t> seem_slow(const Topology& topology, const SpeedReports& reports) {
  const Cluster cluster = cluster_of(topology, reports);
  std::vector<int32_t> slow;
  for (const auto& [kind, members] : cluster.kinds) {
    const Expected expected = expected_of(topology, reports, members);
    for (const int i : members) {
      const RankInfo& rank = topology.ranks(i);
      const SpeedReport& report = reports.at(rank.rank());
      const bool under = report.memory_bandwidth_bytes_per_s() < kOwnSpeed * expected.bandwidth ||
                         report.flops_16bit_per_s() < kOwnSpeed * expected.flops;
      if (under && !is_crowded(topology, cluster.hosts.at(rank.host()))) {
        slow.push_back(rank.rank());
      }
    }
  }
  std::sort(slow.begin(), slow.end());
  return slow;
}

std::vector<std::string> apply_speeds(const SpeedReports& reports, Topology& topology) {
  const Cluster cluster = cluster_of(topology, reports);
  std::vector<std::string> words;
  for (const auto& [kind, members] : cluster.kinds) {
    const Expected expected = expected_of(topology, reports, members);
    for (const int i : members) {
      RankInfo& rank = *topology.mutable_ranks(i);
      const bool crowded = is_crowded(topology, cluster.hosts.at(rank.host()));
      const std::string before = rank.device().degraded_reason();
      set_device(reports.at(rank.rank()), expected, crowded, *rank.mutable_device());
      if (rank.device().degraded_reason() != before) {
        words.push_back(name_of(rank) + ": " + rank.device().degraded_reason());
      }
    }
  }
  const std::vector<std::string> slow = Tables(reports, cluster, topology).add();
  words.insert(words.end(), slow.begin(), slow.end());
  set_network(cluster, topology);
  return words;
}

}  // namespace trireme
