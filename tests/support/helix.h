// SPDX-License-Identifier: Apache-2.0
// The clusters that Helix (Mei et al., ASPLOS 2025) published placements for, under its own times
// of a layer of LLaMA-2-70B: how many requests/s its placements and ours reach.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "topology/placement.h"

namespace trireme {

class HelixCluster {
 public:
  // A file of tests/data/clusters: "helix-24", "helix-42".
  explicit HelixCluster(const std::string& name);

  const std::string& name() const { return name_; }
  // Each node is one device, as Helix has it, whose constants are fitted to its times.
  const Topology& topology() const { return topology_; }
  const ModelSpec& model() const { return model_; }
  const PlacementOptions& options() const { return options_; }

  // The most that can flow through Helix's placement: a node takes part from the layer on that it
  // gets a request at, computes as large batches as its memory holds, and divides its requests
  // among all that hold the next layer.
  double published_requests_per_s() const;

  // Of a placement's pipelines, with the batches and micro-batches that it states: what the slowest
  // stage or link lets through, and no more than its micro-batches fill while they are on the way.
  double requests_per_s(const Placement& placement) const;

 private:
  using Curve = std::vector<std::pair<double, double>>;  // x, seconds; ascending
  struct Type {
    std::string name;
    double memory = 0;
    Curve prompt, decode;  // of one layer, by tokens, by sequences
  };
  struct Node {
    size_t type = 0;
    int32_t begin = 0, end = 0;  // layers, in the published placement
  };

  void make_topology();
  double latency_between(size_t a, size_t b) const;
  DeviceSpeed fit(const Type& type) const;
  double request_s(const Type& type, double sequences) const;  // of one layer
  std::vector<double> batches() const;  // of each node, in the published placement

  std::string name_;
  std::vector<Type> types_;
  std::vector<Node> nodes_;
  std::vector<std::vector<double>> bandwidth_;  // bytes/s
  Topology topology_;
  ModelSpec model_;
  PlacementOptions options_;
};

}  // namespace trireme
