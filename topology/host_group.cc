// SPDX-License-Identifier: Apache-2.0
#include "topology/host_group.h"

#include <algorithm>
#include <map>
#include <string>

#include "kernels/sizes.h"

namespace trireme {
namespace {

constexpr double kSegmentBytes = double(kSumSegment) * sizeof(float);

double all_reduce_s(const HostGroup& group, double bytes) {
  if (bytes <= double(kDirectSumBytes)) return group.latency_s + bytes * group.exchange_byte_s;
  return 2 * (group.latency_s + bytes / group.size * group.exchange_byte_s);
}

}  // namespace

// Messages to several peers leave a host one after the other, as fast as the best of its links:
// where a link is slower than that, its other end is what is slow.
HostGroup host_group(const Topology& topology, const LinkGraph& links,
                     const std::vector<int>& workers) {
  struct Host {
    double ranks = 0, bandwidth = 0;  // of its best link to another host
  };
  std::map<std::string, Host> hosts;
  HostGroup group;
  group.size = static_cast<int32_t>(workers.size());
  for (const int a : workers) {
    const std::string& host = topology.ranks(a).host();
    hosts[host].ranks += 1;
    for (const int b : workers) {
      if (a == b) continue;
      const LinkSpeed& link = links.between(a, b);
      group.latency_s = std::max(group.latency_s, link.latency_s());
      group.exchange_byte_s = std::max(group.exchange_byte_s, 1 / link.bandwidth_bytes_per_s());
      if (a == workers.front()) {
        group.gather_byte_s = std::max(group.gather_byte_s, 1 / link.bandwidth_bytes_per_s());
      }
      if (topology.ranks(b).host() == host) continue;
      hosts[host].bandwidth = std::max(hosts[host].bandwidth, link.bandwidth_bytes_per_s());
    }
  }
  if (hosts.size() == 1) {
    group.exchange_byte_s *= group.size - 1;
    group.gather_byte_s *= group.size - 1;
    return group;
  }
  for (const auto& [name, host] : hosts) {
    const double others = group.size - host.ranks;
    group.exchange_byte_s = std::max(group.exchange_byte_s, host.ranks * others / host.bandwidth);
    if (name != topology.ranks(workers.front()).host()) continue;
    group.gather_byte_s = std::max(group.gather_byte_s, others / host.bandwidth);
  }
  return group;
}

AllReduceRow all_reduce_row(const HostGroup& group) {
  AllReduceRow row;
  row.set_tp(group.size);
  row.set_alpha_s(group.latency_s);
  const auto add = [&](double bytes) {
    AllReduceSample& sample = *row.add_samples();
    sample.set_bytes(static_cast<uint64_t>(bytes));
    sample.set_seconds(all_reduce_s(group, bytes));
  };
  // Between samples the table is straight in logarithms, so a factor of two is near enough.
  for (double bytes = 256; bytes <= double(kDirectSumBytes); bytes *= 2) add(bytes);
  add(double(kDirectSumBytes) + 1);
  for (double bytes = 2.0 * double(kDirectSumBytes); bytes <= kSegmentBytes; bytes *= 2) add(bytes);
  // Further segments as the first one.
  row.set_bus_bytes_per_s(2.0 * (group.size - 1) / group.size * kSegmentBytes /
                          all_reduce_s(group, kSegmentBytes));
  return row;
}

double gather_s(const HostGroup& group, double bytes) {
  return group.latency_s + bytes * group.gather_byte_s;
}

}  // namespace trireme
