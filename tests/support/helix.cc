// SPDX-License-Identifier: Apache-2.0
#include "tests/support/helix.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <queue>

#include "tests/support/models.h"
#include "topology/shard.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr double kChunk = 2048;  // tokens of a prompt at once

// Straight lines between points, and beyond the last two.
double at(const std::vector<std::pair<double, double>>& curve, double x) {
  size_t i = 1;
  while (i + 1 < curve.size() && curve[i].first < x) ++i;
  const auto& [x0, y0] = curve[i - 1];
  const auto& [x1, y1] = curve[i];
  return std::max(y0 + (x - x0) * (y1 - y0) / (x1 - x0), curve.front().second);
}

// The most from node 0 to node 1 (Edmonds and Karp 1972).
double max_flow(std::vector<std::vector<double>> capacity) {
  constexpr double kNothing = 1e-12;
  const size_t count = capacity.size();
  double flow = 0;
  for (;;) {
    std::vector<size_t> from(count, count);
    std::queue<size_t> next;
    next.push(0);
    from[0] = 0;
    while (!next.empty() && from[1] == count) {
      const size_t a = next.front();
      next.pop();
      for (size_t b = 0; b < count; ++b) {
        if (from[b] != count || capacity[a][b] <= kNothing) continue;
        from[b] = a;
        next.push(b);
      }
    }
    if (from[1] == count) return flow;
    double most = std::numeric_limits<double>::infinity();
    for (size_t b = 1; b != 0; b = from[b]) most = std::min(most, capacity[from[b]][b]);
    for (size_t b = 1; b != 0; b = from[b]) {
      capacity[from[b]][b] -= most;
      capacity[b][from[b]] += most;
    }
    flow += most;
  }
}

}  // namespace

HelixCluster::HelixCluster(const std::string& name) : name_(name) {
  std::ifstream file(std::string(TRIREME_SOURCE_DIR) + "/tests/data/clusters/" + name + ".json");
  const nlohmann::json json = nlohmann::json::parse(file);
  std::map<std::string, size_t> index;
  for (const auto& [type_name, entry] : json["types"].items()) {
    index[type_name] = types_.size();
    Type& type = types_.emplace_back();
    type.name = type_name;
    type.memory = entry["vram_gb"].get<double>() * 1e9;
    for (const auto& point : entry["prompt_ms"]) {
      type.prompt.emplace_back(point[0].get<double>(), point[1].get<double>() / 1e3);
    }
    for (const auto& point : entry["decode_ms"]) {
      type.decode.emplace_back(point[0].get<double>(), point[1].get<double>() / 1e3);
    }
  }
  for (const auto& entry : json["nodes"]) {
    nodes_.push_back({index.at(entry["type"]), entry["layers"][0], entry["layers"][1]});
  }
  for (const auto& row : json["bandwidth_mb_s"]) {
    std::vector<double>& speeds = bandwidth_.emplace_back();
    for (const auto& value : row) speeds.push_back(value.get<double>() * 1e6);
  }
  model_ = make_model(80, 64, 8, 128, 28672, 32000);
  options_.load = {750, 240};  // the means of Helix's requests
  options_.batches = {1,  2,  4,  6,  8,   12,  16,  20,  24,  28,  32,  40,
                      48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 480};
  options_.limit_sequences = false;
  options_.assumptions.detailed = false;
  options_.assumptions.exact_bytes = false;
  make_topology();
}

void HelixCluster::make_topology() {
  std::vector<DeviceSpeed> speeds;
  for (const Type& type : types_) speeds.push_back(fit(type));
  for (size_t i = 0; i < nodes_.size(); ++i) {
    RankInfo& rank = *topology_.add_ranks();
    rank.set_rank(static_cast<int32_t>(i) + 1);
    rank.set_host("node" + std::to_string(i));
    DeviceInfo& device = *rank.mutable_device();
    const Type& type = types_[nodes_[i].type];
    device.set_kind(DEVICE_KIND_CUDA);
    device.set_name(type.name);
    device.set_memory_bytes(static_cast<uint64_t>(type.memory));
    *device.mutable_speed() = speeds[nodes_[i].type];
    topology_.add_nodes()->set_host(rank.host());
  }
  for (size_t a = 0; a < nodes_.size(); ++a) {
    for (size_t b = a + 1; b < nodes_.size(); ++b) {
      Link& link = *topology_.add_links();
      link.set_rank_a(static_cast<int32_t>(a) + 1);
      link.set_rank_b(static_cast<int32_t>(b) + 1);
      link.mutable_speed()->set_link_class(LINK_CLASS_NET);
      link.mutable_speed()->set_bandwidth_bytes_per_s(bandwidth_[a][b]);
      link.mutable_speed()->set_latency_s(latency_between(a, b));
    }
  }
}

double HelixCluster::latency_between(size_t a, size_t b) const {
  constexpr double kNear = 1e8;  // bytes/s: nodes of one region reach more
  return bandwidth_[a][b] < kNear ? 50e-3 : 1e-3;
}

// Bandwidth from the smallest batch, FLOP/s from the longest prompt; what the KV cache reaches, and
// how the two join, by the least error over all batches.
DeviceSpeed HelixCluster::fit(const Type& type) const {
  const ModelCost cost = model_cost(model_, options_.dtype, options_.assumptions);
  const double tokens = type.prompt.back().first;
  DeviceSpeed speed;
  speed.set_memory_efficiency(1);
  speed.set_compute_efficiency(1);
  speed.set_launch_s(1e-9);
  speed.set_decode_layer_s(1e-9);
  speed.set_prefill_layer_s(1e-9);
  speed.set_memory_bandwidth_bytes_per_s(cost.layer_bytes / type.decode.front().second);
  speed.set_flops_16bit_per_s(2 * cost.layer_parameters * tokens / type.prompt.back().second);
  double least = std::numeric_limits<double>::infinity();
  const DeviceSpeed start = speed;
  for (double p = 1; p <= 8; p *= 1.25) {
    for (double ea = 0.02; ea <= 2; ea *= 1.25) {
      DeviceInfo device;
      device.set_kind(DEVICE_KIND_CUDA);
      *device.mutable_speed() = start;
      device.mutable_speed()->set_smoothing_exponent(p);
      device.mutable_speed()->set_attention_memory_efficiency(ea);
      const StageCost stage{device_cost(device), 1, {}, nullptr};
      double error = 0;
      for (const auto& [batch, seconds] : type.decode) {
        const double positions = options_.load.prompt_tokens + options_.load.output_tokens / 2.0;
        error += std::abs(std::log(
            decode_layer_s(cost, stage, options_.assumptions, batch, positions) / seconds));
      }
      if (error >= least) continue;
      least = error;
      speed = device.speed();
    }
  }
  return speed;
}

double HelixCluster::request_s(const Type& type, double sequences) const {
  return options_.load.prompt_tokens * at(type.prompt, kChunk) / kChunk +
         options_.load.output_tokens * at(type.decode, sequences) / sequences;
}

std::vector<double> HelixCluster::batches() const {
  const ModelCost cost = model_cost(model_, options_.dtype, options_.assumptions);
  const double positions = options_.load.prompt_tokens + options_.load.output_tokens;
  std::vector<double> result(nodes_.size(), 16), held;
  for (const Node& node : nodes_) {
    const double layers = node.end - node.begin;
    const double usable = types_[node.type].memory * options_.assumptions.usable_share -
                          options_.assumptions.gpu_reserve_bytes;
    held.push_back((usable - layers * cost.layer_bytes) / (layers * positions * cost.kv_bytes));
  }
  // Larger batches take longer, and so change the share of a round that each node has.
  for (int round = 0; round < 50; ++round) {
    double seconds = 0, layers = 0;
    const auto layer_s = [&](size_t i) { return at(types_[nodes_[i].type].decode, result[i]); };
    for (size_t i = 0; i < nodes_.size(); ++i) {
      seconds += (nodes_[i].end - nodes_[i].begin) * layer_s(i);
      layers += nodes_[i].end - nodes_[i].begin;
    }
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const double own = (nodes_[i].end - nodes_[i].begin) * layer_s(i);
      const double others =
          (model_.num_layers() - (nodes_[i].end - nodes_[i].begin)) * seconds / layers;
      const double batch = std::clamp(held[i] * own / (own + others), 1.0,
                                      types_[nodes_[i].type].decode.back().first);
      result[i] = 0.5 * (result[i] + batch);
    }
  }
  return result;
}

double HelixCluster::published_requests_per_s() const {
  const size_t count = nodes_.size();
  const double bytes = (options_.load.prompt_tokens + options_.load.output_tokens) *
                       model_.hidden_size() * options_.assumptions.hop_element_bytes;
  constexpr double kFree = 1e9;
  const std::vector<double> batch = batches();
  // 0 is the source, 1 the sink, then each node's entry and exit.
  std::vector<std::vector<double>> capacity(2 * count + 2, std::vector<double>(2 * count + 2));
  for (size_t i = 0; i < count; ++i) {
    const Node& node = nodes_[i];
    const size_t in = 2 * i + 2, out = in + 1;
    const double layer_s = request_s(types_[node.type], batch[i]);
    capacity[in][out] = 1 / ((node.end - node.begin) * layer_s);
    if (node.begin == 0) capacity[0][in] = kFree;
    if (node.end == model_.num_layers()) capacity[out][1] = kFree;
    for (size_t j = 0; j < count; ++j) {
      if (nodes_[j].begin <= node.end && node.end < nodes_[j].end) {
        capacity[out][2 * j + 2] = bandwidth_[i][j] / bytes;
      }
    }
  }
  return max_flow(std::move(capacity));
}

double HelixCluster::requests_per_s(const Placement& placement) const {
  const double row = model_.hidden_size() * options_.assumptions.hop_element_bytes;
  const Load& load = options_.load;
  double all = 0;
  for (const ReplicaSpec& replica : placement.replicas()) {
    const double batch = replica.sequences_per_micro_batch();
    const double in_flight = batch * replica.micro_batches();
    double slowest = 0, way = 0;  // a whole request's, with nothing else in the pipeline
    for (int k = 0; k < replica.stages_size(); ++k) {
      const auto rank = [&](int stage) {
        return static_cast<size_t>(replica.stages(stage).shards(0).rank() - 1);
      };
      const size_t node = rank(k);
      const Type& type = types_[nodes_[node].type];
      const double layers = length(replica.stages(k).layers());
      slowest = std::max(slowest, layers * request_s(type, batch));
      way += layers * (load.output_tokens * at(type.decode, batch) +
                       load.prompt_tokens * at(type.prompt, kChunk) / kChunk);
      const bool back = k + 1 == replica.stages_size();  // the ids, to the first stage
      const size_t next = rank(back ? 0 : k + 1);
      if (next == node) continue;
      const double bandwidth = bandwidth_[node][next];
      const double latency = latency_between(node, next);
      way += load.output_tokens * hop_s(latency, bandwidth, back ? 0 : row * batch);
      if (back) continue;
      way += hop_s(latency, bandwidth, load.prompt_tokens * row);
      slowest = std::max(slowest, options_.load.output_tokens / batch *
                                          hop_occupancy_s(latency, bandwidth, row * batch) +
                                      options_.load.prompt_tokens * row / bandwidth);
    }
    all += 1 / std::max(slowest, way / in_flight);
  }
  return all;
}

}  // namespace trireme
