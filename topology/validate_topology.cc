// SPDX-License-Identifier: Apache-2.0
#include <google/protobuf/util/json_util.h>

#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "topology/machine_topology.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr int kMaxRanks = 1 << 16;
constexpr int kMaxEntries = 1 << 18;  // links, network links, notes
constexpr int kMaxRows = 256;         // of an all-reduce table, and samples of a row
constexpr int32_t kMaxTp = 1024;
constexpr uint64_t kMaxMemory = uint64_t{1} << 50;

[[noreturn]] void refuse(const std::string& where, const std::string& found) {
  throw Error(Code::kInvalidArgument, "cannot use the topology: " + where + " " + found);
}

void check_count(const std::string& what, int count, int most) {
  if (count > most) {
    refuse("it", "has " + std::to_string(count) + " " + what + ", at most " + std::to_string(most) +
                     " are read");
  }
}

// JSON's readers and writers do not agree about it.
bool is_minus_zero(double value) { return value == 0 && std::signbit(value); }

// NaN fails every comparison, so the wanted range is stated and negated.
void check_number(const std::string& where, const char* field, double value, double least,
                  double most) {
  if (value >= least && value <= most && !is_minus_zero(value)) return;
  char text[160];
  std::snprintf(text, sizeof text, "has %s %g, needed is %g to %g", field, value, least, most);
  refuse(where, text);
}

// A speed that may be left out.
void check_speed(const std::string& where, const char* field, double value, double most) {
  if (value != 0 || is_minus_zero(value)) check_number(where, field, value, 1, most);
}

void check_device_speed(const std::string& where, const DeviceSpeed& speed) {
  check_speed(where, "memory_bandwidth_bytes_per_s", speed.memory_bandwidth_bytes_per_s(), 1e15);
  check_speed(where, "flops_16bit_per_s", speed.flops_16bit_per_s(), 1e18);
  const auto efficiency = [&](const char* field, double value) {
    if (value != 0 || is_minus_zero(value)) check_number(where, field, value, 1e-4, 2);
  };
  efficiency("memory_efficiency", speed.memory_efficiency());
  efficiency("attention_memory_efficiency", speed.attention_memory_efficiency());
  efficiency("compute_efficiency", speed.compute_efficiency());
  check_number(where, "launch_s", speed.launch_s(), 0, 1);
  check_number(where, "decode_layer_s", speed.decode_layer_s(), 0, 1);
  check_number(where, "prefill_layer_s", speed.prefill_layer_s(), 0, 1);
  if (speed.smoothing_exponent() != 0) {
    check_number(where, "smoothing_exponent", speed.smoothing_exponent(), 1, 16);
  }
}

void check_link_speed(const std::string& where, const LinkSpeed& speed, bool needed) {
  if (!LinkClass_IsValid(speed.link_class())) {
    refuse(where, "has link_class " + std::to_string(speed.link_class()) +
                      ", which is none of NVL to NET");
  }
  check_number(where, "latency_s", speed.latency_s(), 0, 60);
  if (needed || speed.bandwidth_bytes_per_s() != 0) {
    check_number(where, "bandwidth_bytes_per_s", speed.bandwidth_bytes_per_s(), 1, 1e14);
  }
  check_speed(where, "nominal_bandwidth_bytes_per_s", speed.nominal_bandwidth_bytes_per_s(), 1e14);
  if (speed.nvlinks() < 0 || speed.nvlinks() > 64) {
    refuse(where,
           "has " + std::to_string(speed.nvlinks()) + " NVLinks, no device has more than 64");
  }
}

std::set<int32_t> check_ranks(const Topology& topology) {
  check_count("ranks", topology.ranks_size(), kMaxRanks);
  std::set<int32_t> ranks;
  int32_t last = -1;
  for (const RankInfo& rank : topology.ranks()) {
    const std::string where = "rank " + std::to_string(rank.rank());
    if (rank.rank() < 0) refuse(where, "is negative");
    if (!ranks.insert(rank.rank()).second) refuse(where, "is there a second time");
    if (rank.rank() < last) {
      refuse(where, "comes after rank " + std::to_string(last) + ", needed is ascending order");
    }
    last = rank.rank();
    const DeviceInfo& device = rank.device();
    if (!DeviceKind_IsValid(device.kind())) {
      refuse(where, "has device kind " + std::to_string(device.kind()) + ", which is none");
    }
    if (device.memory_bytes() > kMaxMemory) refuse(where, "claims more than 1 PiB of memory");
    if (device.threads() < 0) refuse(where, "has a negative number of threads");
    check_count("cores of one rank", device.cpus_size(), kMaxRanks);
    for (const int32_t links : {device.nvlinks(), device.nvlinks_expected()}) {
      if (links < 0 || links > 64) {
        refuse(where, "has " + std::to_string(links) + " NVLinks, no device has more than 64");
      }
    }
    if (device.has_rail() && (device.rail() < 0 || device.rail() > kMaxTp)) {
      refuse(where, "has rail " + std::to_string(device.rail()) + ", needed is 0 to 1024");
    }
    check_device_speed(where, device.speed());
  }
  return ranks;
}

void check_table(const std::string& where, const AllReduceTable& table) {
  check_count("rows in " + where, table.rows_size(), kMaxRows);
  int32_t last = 1;
  for (const AllReduceRow& row : table.rows()) {
    const std::string row_where = where + ", TP " + std::to_string(row.tp());
    if (row.tp() <= last || row.tp() > kMaxTp) {
      refuse(row_where, "comes after TP " + std::to_string(last) +
                            ", needed are ascending degrees of 2 to 1024");
    }
    last = row.tp();
    check_number(row_where, "alpha_s", row.alpha_s(), 0, 60);
    check_number(row_where, "bus_bytes_per_s", row.bus_bytes_per_s(), 1, 1e14);
    check_count("samples in " + row_where, row.samples_size(), kMaxRows);
    uint64_t bytes = 0;
    for (const AllReduceSample& sample : row.samples()) {
      if (sample.bytes() <= bytes) refuse(row_where, "has samples that do not ascend by bytes");
      bytes = sample.bytes();
      check_number(row_where, "seconds", sample.seconds(), 1e-9, 3600);
    }
  }
}

std::set<std::string> check_tables(const Topology& topology) {
  check_count("all-reduce tables", topology.all_reduce_tables_size(), kMaxRanks);
  std::set<std::string> names;
  for (const AllReduceTable& table : topology.all_reduce_tables()) {
    const std::string where = "all-reduce table \"" + table.name() + "\"";
    if (table.name().empty()) refuse(where, "has no name");
    if (!names.insert(table.name()).second) refuse(where, "is there a second time");
    check_table(where, table);
  }
  return names;
}

void check_islands(const Topology& topology, const std::set<int32_t>& ranks,
                   const std::set<std::string>& tables) {
  check_count("islands", topology.islands_size(), kMaxRanks);
  std::set<int32_t> used;
  for (int index = 0; index < topology.islands_size(); ++index) {
    const Island& island = topology.islands(index);
    const std::string where = "island " + std::to_string(index);
    if (island.ranks().empty()) refuse(where, "has no rank");
    for (const int32_t rank : island.ranks()) {
      if (!ranks.count(rank))
        refuse(where, "names rank " + std::to_string(rank) + ", which is not there");
      if (!used.insert(rank).second) {
        refuse(where, "has rank " + std::to_string(rank) + ", which is in an island already");
      }
    }
    if (!island.all_reduce_table().empty() && !tables.count(island.all_reduce_table())) {
      refuse(where, "names the all-reduce table \"" + island.all_reduce_table() +
                        "\", which is not there");
    }
    check_link_speed(where, island.link(), false);
    check_table(where + ", nominal table", island.nominal());
  }
}

void check_links(const Topology& topology, const std::set<int32_t>& ranks) {
  check_count("links", topology.links_size(), kMaxEntries);
  std::set<std::pair<int32_t, int32_t>> pairs;
  for (const Link& link : topology.links()) {
    const std::string where =
        "the link " + std::to_string(link.rank_a()) + "-" + std::to_string(link.rank_b());
    for (const int32_t rank : {link.rank_a(), link.rank_b()}) {
      if (!ranks.count(rank))
        refuse(where, "names rank " + std::to_string(rank) + ", which is not there");
    }
    if (link.rank_a() == link.rank_b()) refuse(where, "joins a rank to itself");
    if (!pairs.insert(std::minmax(link.rank_a(), link.rank_b())).second) {
      refuse(where, "is there a second time");
    }
    check_link_speed(where, link.speed(), true);
  }
}

// The names that NetworkLink may use.
std::set<std::string> check_nodes(const Topology& topology) {
  check_count("nodes", topology.nodes_size(), kMaxRanks);
  std::set<std::string> hosts;
  std::set<std::string> names;
  for (const RankInfo& rank : topology.ranks()) names.insert(rank.host());
  for (const NodeInfo& node : topology.nodes()) {
    const std::string where = "node \"" + node.host() + "\"";
    if (!hosts.insert(node.host()).second) refuse(where, "is there a second time");
    names.insert(node.host());
    names.insert(node.group());
    check_count("notes in " + where, node.notes_size(), kMaxRows);
    check_count("NICs in " + where, node.nics_size(), kMaxRows);
    std::set<std::pair<std::string, int32_t>> nics;
    for (const NicInfo& nic : node.nics()) {
      const std::string nic_where = where + ", NIC \"" + nic.name() + "\"";
      if (!nics.emplace(nic.name(), nic.port()).second) refuse(nic_where, "is there a second time");
      if (!NicState_IsValid(nic.state())) {
        refuse(nic_where, "has state " + std::to_string(nic.state()) + ", which is none");
      }
      check_speed(nic_where, "rate_bytes_per_s", nic.rate_bytes_per_s(), 1e13);
    }
    check_link_speed(where, node.between_islands(), false);
  }
  names.insert("");
  return names;
}

void check_network(const Topology& topology, const std::set<std::string>& names) {
  check_count("network links", topology.network_size(), kMaxEntries);
  std::set<std::pair<std::string, std::string>> pairs;
  for (const NetworkLink& link : topology.network()) {
    const std::string where = "the network link \"" + link.a() + "\" - \"" + link.b() + "\"";
    for (const std::string& name : {link.a(), link.b()}) {
      if (!names.count(name))
        refuse(where, "names \"" + name + "\", which is no host and no group");
    }
    if (!pairs.insert(std::minmax(link.a(), link.b())).second) {
      refuse(where, "is there a second time");
    }
    check_link_speed(where, link.speed(), true);
    check_link_speed(where, link.cross_rail(), false);
  }
}

}  // namespace

void validate_topology(const Topology& topology) {
  const std::set<int32_t> ranks = check_ranks(topology);
  check_islands(topology, ranks, check_tables(topology));
  check_links(topology, ranks);
  check_network(topology, check_nodes(topology));
}

Topology topology_from_json(const std::string& json) {
  Topology topology;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &topology);
  if (!status.ok()) {
    throw Error(Code::kInvalidArgument,
                "cannot read the topology: " + std::string(status.message()) +
                    "; needed is a Topology as `trireme probe --json` "
                    "writes it");
  }
  validate_topology(topology);
  return topology;
}

Topology read_topology(const std::string& path) { return read_topology_files({path}); }

std::string topology_to_json(const Topology& topology) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails for messages with Any fields only, which a Topology has not.
  (void)google::protobuf::util::MessageToJsonString(topology, &json, options);
  return json;
}

}  // namespace trireme
