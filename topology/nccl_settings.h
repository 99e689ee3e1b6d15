// SPDX-License-Identifier: Apache-2.0
// Which interface and which InfiniBand or RoCE ports NCCL is to use, by what was probed and by
// which way ranks are known to reach each other. Left to itself it takes the first interfaces that
// it finds, and every port that is up, storage's among them.
#pragma once

#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

// NCCL's variables that are looked at: where one is set, by its user's environment or a nccl.conf,
// what follows from it is theirs.
inline constexpr std::array kNcclVariables = {
    "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA",   "NCCL_IB_DISABLE", "NCCL_NET",
    "NCCL_NET_PLUGIN",    "NCCL_RAS_ADDR", "NCCL_RAS_ENABLE"};

// What recorded steps rest on: that ranks need not record at the same time, as they would to
// register buffers, and that other operations of a communicator may follow a recording which still
// runs. A rank whose user has set them otherwise does not record sums by NCCL.
struct NcclConstant {
  const char* name;
  const char* value;
};
inline constexpr std::array kNcclForRecordings = {NcclConstant{"NCCL_GRAPH_REGISTER", "0"},
                                                  NcclConstant{"NCCL_GRAPH_MIXING_SUPPORT", "1"}};

struct NcclVariable {
  std::string name;
  std::string value;
  std::string reason;  // a clause that follows "because"; of what the user has set: empty
};

struct NcclSettings {
  std::vector<NcclVariable> chosen;   // to be set
  std::vector<NcclVariable> by_user;  // that are, and stay
};

// Whether the rank computes on a GPU and has found the library.
bool has_nccl(const RankInfo& rank);

using NcclVariables = google::protobuf::Map<std::string, std::string>;

// For `rank`, one of the `ranks` that exchange tensors by NCCL. Equal on all ranks of a host, whose
// copies of NCCL must see the same cards; whether InfiniBand, RoCE or sockets join the hosts is
// equal on all. Among ranks of one host only the interface is chosen. REQUIRES: `rank` is in
// `topology`.
NcclSettings choose_nccl_settings(const Topology& topology, const std::set<int>& ranks, int rank,
                                  const NcclVariables& environment);

// A line for all ranks that have equal settings: "NCCL: ranks 1 2 on node0: …".
std::vector<std::string> describe_nccl_settings(const Topology& topology,
                                                const std::map<int, NcclSettings>& settings);

// What is to be set, by name.
NcclVariables variables_of(const NcclSettings& settings);

// Sets what is chosen and kNcclForRecordings in this process, where they are not set. Throws
// kInvalidArgument for a name that is none of kNcclVariables, and for a value that NCCL's own
// cannot be. Before NCCL is first used, while no other thread reads the environment.
void set_nccl_variables(const NcclVariables& chosen);

}  // namespace trireme
