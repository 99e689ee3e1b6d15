// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "launch/links.h"
#include "launch/text_table.h"
#include "topology/slow_links.h"

namespace trireme {
namespace {

constexpr size_t kMostHostPairs = 12;  // rows by pair of hosts; beyond, rows by kind of link
constexpr size_t kShownOutliers = 5;

using Links = std::vector<const MeasuredLink*>;

double latency_us(const MeasuredLink& link) { return link.finding.latency_s() * 1e6; }
double gigabytes_per_s(const MeasuredLink& link) {
  return link.finding.bandwidth_bytes_per_s() / 1e9;
}

double median(const Links& links, double (*value)(const MeasuredLink&)) {
  std::vector<double> values;
  for (const MeasuredLink* const link : links) values.push_back(value(*link));
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// "least / median / greatest", or the one value.
std::string spread(const Links& links, double (*value)(const MeasuredLink&)) {
  if (links.size() == 1) return three_figures(value(*links.front()));
  const auto [least, greatest] = std::minmax_element(
      links.begin(), links.end(), [&](auto* x, auto* y) { return value(*x) < value(*y); });
  return three_figures(value(**least)) + " / " + three_figures(median(links, value)) + " / " +
         three_figures(value(**greatest));
}

std::string transport(const LinkFinding& finding) {
  std::string text = finding.transport();
  if (!finding.interface().empty()) text += ", " + finding.interface();
  if (finding.interface_bytes_per_s() > 0) {
    text += " " + three_figures(finding.interface_bytes_per_s() * 8 / 1e9) + " Gbit/s";
  }
  return printable(text);
}

bool one_host(const MeasuredLink& link) { return link.a.host() == link.b.host(); }

std::string host_pair(const MeasuredLink& link) {
  if (one_host(link)) return "inside " + link.a.host();
  return std::min(link.a.host(), link.b.host()) + " - " + std::max(link.a.host(), link.b.host());
}

std::string kind(const MeasuredLink& link) {
  return one_host(link) ? "inside a host" : "between hosts";
}

std::map<std::pair<std::string, std::string>, Links> group(
    const std::vector<MeasuredLink>& links, std::string (*place)(const MeasuredLink&)) {
  std::map<std::pair<std::string, std::string>, Links> groups;
  for (const MeasuredLink& link : links) {
    groups[{place(link), transport(link.finding)}].push_back(&link);
  }
  return groups;
}

// Hosts with more ranks than cores, whose messages wait for a turn: nothing is told of single
// pairs.
std::set<std::string> crowded_hosts(const std::vector<MeasuredLink>& links) {
  std::map<std::string, std::map<int, int>> cores_of;  // by host and rank
  for (const MeasuredLink& link : links) {
    for (const RankInfo* const rank : {&link.a, &link.b}) {
      cores_of[rank->host()][rank->rank()] = rank->device().cpus_size();
    }
  }
  std::set<std::string> crowded;
  for (const auto& [host, ranks] : cores_of) {
    int cores = 0;
    for (const auto& [rank, own] : ranks) cores = std::max(cores, own);
    if (cores > 0 && static_cast<int>(ranks.size()) > cores) crowded.insert(host);
  }
  return crowded;
}

// Links far worse than the median of their kind, the worst first.
std::string outliers(const std::vector<MeasuredLink>& links) {
  std::vector<std::pair<double, std::string>> found;
  const std::set<std::string> crowded = crowded_hosts(links);
  for (const auto& [name, members] : group(links, kind)) {
    if (members.size() < kLeastAlike) continue;
    const double latency = median(members, latency_us);
    const double bandwidth = median(members, gigabytes_per_s);
    for (const MeasuredLink* const link : members) {
      const double worse = std::max(latency_us(*link) / std::max(latency, 1e-3),
                                    bandwidth / std::max(gigabytes_per_s(*link), 1e-9));
      if (worse < kFarFromLike || (one_host(*link) && crowded.contains(link->a.host()))) continue;
      found.emplace_back(worse, "rank " + std::to_string(link->a.rank()) + " on " + link->a.host() +
                                    " - rank " + std::to_string(link->b.rank()) + " on " +
                                    link->b.host() + ", " + transport(link->finding) + ": " +
                                    three_figures(latency_us(*link)) + " µs, " +
                                    three_figures(gigabytes_per_s(*link)) + " GB/s");
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string text;
  for (const std::string& host : crowded) {
    text += "  " + host + " has more ranks than cores: its messages wait for a turn\n";
  }
  for (size_t i = 0; i < std::min(found.size(), kShownOutliers); ++i) {
    text += "  far from its like: " + found[i].second + "\n";
  }
  if (found.size() > kShownOutliers) {
    text += "  and " + std::to_string(found.size() - kShownOutliers) + " more\n";
  }
  return text;
}

}  // namespace

std::string link_table(const std::vector<MeasuredLink>& links) {
  auto groups = group(links, host_pair);
  if (groups.size() > kMostHostPairs) groups = group(links, kind);
  std::vector<TextRow> rows = {{"links", "transport", "pairs", "latency µs", "bandwidth GB/s"}};
  for (const auto& [name, members] : groups) {
    rows.push_back({name.first, name.second, std::to_string(members.size()),
                    spread(members, latency_us), spread(members, gigabytes_per_s)});
  }
  return draw_table(rows) + outliers(links);
}

}  // namespace trireme
