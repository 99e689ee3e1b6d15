// SPDX-License-Identifier: Apache-2.0
#include "topology/slow_links.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

namespace trireme {
namespace {

// One message of 1 MiB over TCP does not fill a fast interface, so less is asked of those.
constexpr double kOfInterface = 0.25;
constexpr double kEnough = 1e9;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

std::set<std::string> crowded_hosts(const Topology& topology) {
  std::map<std::string, std::pair<size_t, int>> ranks_and_cores;
  for (const RankInfo& rank : topology.ranks()) {
    auto& [ranks, cores] = ranks_and_cores[rank.host()];
    ++ranks;
    cores = std::max(cores, rank.device().cpus_size());
  }
  std::set<std::string> crowded;
  for (const auto& [host, count] : ranks_and_cores) {
    if (count.second > 0 && count.first > static_cast<size_t>(count.second)) crowded.insert(host);
  }
  return crowded;
}

void degrade(LinkSpeed& speed, const char* format, double found, double wanted) {
  char text[128];
  std::snprintf(text, sizeof text, format, found, wanted, 100 * found / wanted);
  speed.set_degraded(true);
  speed.set_degraded_reason(speed.degraded_reason() +
                            (speed.degraded_reason().empty() ? "" : "; ") + text);
}

void compare(const std::vector<LinkSpeed*>& alike) {
  if (alike.size() < kLeastAlike) return;
  std::vector<double> latencies, bandwidths;
  for (const LinkSpeed* speed : alike) {
    latencies.push_back(speed->latency_s());
    bandwidths.push_back(speed->bandwidth_bytes_per_s());
  }
  const double latency = median(std::move(latencies)), bandwidth = median(std::move(bandwidths));
  for (LinkSpeed* speed : alike) {
    if (speed->bandwidth_bytes_per_s() * kFarFromLike <= bandwidth) {
      degrade(*speed, "%.3g GB/s, its like have %.3g: %.0f %% of it",
              speed->bandwidth_bytes_per_s() / 1e9, bandwidth / 1e9);
    }
    if (speed->latency_s() >= kFarFromLike * std::max(latency, 1e-9)) {
      degrade(*speed, "%.0f us, its like have %.0f: %.0f %% of it", speed->latency_s() * 1e6,
              std::max(latency, 1e-9) * 1e6);
    }
  }
}

}  // namespace

std::vector<std::string> mark_slow_links(Topology& topology) {
  std::map<int32_t, std::string> host_of;
  for (const RankInfo& rank : topology.ranks()) host_of[rank.rank()] = rank.host();
  const std::set<std::string> crowded = crowded_hosts(topology);
  std::map<bool, std::vector<LinkSpeed*>> kinds;  // within a node or not
  std::vector<std::pair<double, std::string>> under;
  for (Link& link : *topology.mutable_links()) {
    LinkSpeed& speed = *link.mutable_speed();
    const std::string &a = host_of[link.rank_a()], &b = host_of[link.rank_b()];
    if (!speed.measured() || (a == b && crowded.contains(a))) continue;
    kinds[a == b].push_back(&speed);
    const double nominal = speed.nominal_bandwidth_bytes_per_s();
    const double share = nominal > 0 ? speed.bandwidth_bytes_per_s() / nominal : 1;
    if (share >= kOfInterface || speed.bandwidth_bytes_per_s() >= kEnough) continue;
    degrade(speed, "%.3g GB/s of the %.3g that its interface has: %.0f %%",
            speed.bandwidth_bytes_per_s() / 1e9, nominal / 1e9);
    under.emplace_back(share, "rank " + std::to_string(link.rank_a()) + " on " + a + " - rank " +
                                  std::to_string(link.rank_b()) + " on " + b + ": " +
                                  speed.degraded_reason());
  }
  for (const auto& [within, alike] : kinds) compare(alike);
  std::sort(under.begin(), under.end());
  std::vector<std::string> words;
  for (auto& [share, text] : under) words.push_back(std::move(text));
  return words;
}

}  // namespace trireme
