// SPDX-License-Identifier: Apache-2.0
// Which link joins two workers: the most specific that a topology names, else an assumption.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "proto/cluster.pb.h"

namespace trireme {

class LinkGraph {
 public:
  // Keeps a reference to `topology`.
  explicit LinkGraph(const Topology& topology);

  // REQUIRES: a != b, indices into topology.ranks.
  const LinkSpeed& between(int a, int b) const;
  // Every speed that between() can return.
  std::vector<const LinkSpeed*> all() const;
  // Index into topology.islands; -1: none.
  int island_of(int worker) const { return island_of_[static_cast<size_t>(worker)]; }

 private:
  const LinkSpeed& network(int a, int b) const;

  const Topology& topology_;
  std::vector<int> island_of_;
  std::map<std::string, const NodeInfo*> nodes_;
  std::map<std::pair<std::string, std::string>, const NetworkLink*> network_;
  std::map<std::pair<int, int>, const LinkSpeed*> pairs_;
};

}  // namespace trireme
