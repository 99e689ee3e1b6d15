// SPDX-License-Identifier: Apache-2.0
#include "tests/support/brute_force.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "topology/cost.h"
#include "topology/link_graph.h"

namespace trireme {
namespace {

// A group that may be a stage: its times by batch, its bytes.
struct Group {
  uint32_t devices = 0;
  int first = 0;
  std::vector<double> request_s, head_s;
  double usable = 0, layer_bytes = 0, kv_bytes = 0, head_bytes = 0;
};

class BruteForce {
 public:
  BruteForce(const Topology& topology, const ModelSpec& model, const PlacementOptions& options)
      : topology_(topology),
        options_(options),
        links_(topology),
        cost_(model_cost(model, options.dtype, options.assumptions)) {
    const int devices = topology.ranks_size();
    for (uint32_t set = 1; set < (1u << devices); ++set) add_group(model, set);
    best_.assign(size_t{1} << devices, 0);
  }

  double solve() {
    std::vector<const Group*> stages;
    extend(0, stages);
    // Replicas are disjoint: the best union for every set of devices.
    std::vector<double> total(best_.size(), 0);
    for (uint32_t set = 1; set < best_.size(); ++set) {
      for (uint32_t part = set; part > 0; part = (part - 1) & set) {
        total[set] = std::max(total[set], best_[part] + total[set & ~part]);
      }
    }
    return total.back();
  }

 private:
  bool alike(int a, int b) const {
    const DeviceInfo& x = topology_.ranks(a).device();
    const DeviceInfo& y = topology_.ranks(b).device();
    return x.type() == y.type() && x.memory_bytes() == y.memory_bytes() &&
           x.degraded() == y.degraded();
  }

  void add_group(const ModelSpec& model, uint32_t set) {
    std::vector<int> members;
    for (int i = 0; i < topology_.ranks_size(); ++i) {
      if (set >> i & 1) members.push_back(i);
    }
    const auto tp = static_cast<int32_t>(members.size());
    const int island = links_.island_of(members[0]);
    const AllReduceTable* table = nullptr;
    if (tp > 1) {
      if (island < 0 || tp > model.num_heads()) return;
      for (const int member : members) {
        if (links_.island_of(member) != island || !alike(member, members[0])) return;
      }
      for (const AllReduceTable& t : topology_.all_reduce_tables()) {
        if (t.name() == topology_.islands(island).all_reduce_table()) table = &t;
      }
      if (table == nullptr || table->rows().rbegin()->tp() < tp) return;
    }
    const DeviceInfo& device = topology_.ranks(members[0]).device();
    StageCost stage{device_cost(device), tp, shard_share(model, tp), table};
    Group group;
    group.devices = set;
    group.first = members[0];
    const double prompt = options_.load.prompt_tokens, output = options_.load.output_tokens;
    const double chunk = options_.assumptions.chunk_tokens;
    const double prompt_s =
        prompt / chunk *
        prefill_layer_s(cost_, stage, options_.assumptions, chunk, (prompt - chunk) / 2);
    for (const int32_t batch : options_.batches) {
      const double step =
          decode_layer_s(cost_, stage, options_.assumptions, batch, prompt + output / 2);
      group.request_s.push_back(prompt_s + output * step / batch);
      group.head_s.push_back(output * trireme::head_s(cost_, stage, batch) / batch);
    }
    group.usable = double(device.memory_bytes()) * options_.assumptions.usable_share -
                   options_.assumptions.gpu_reserve_bytes;
    group.layer_bytes = cost_.layer_bytes * stage.share.weights;
    group.kv_bytes = cost_.kv_bytes * stage.share.kv * (prompt + output);
    group.head_bytes = cost_.head_bytes * stage.share.vocab;
    groups_.push_back(std::move(group));
  }

  void extend(uint32_t used, std::vector<const Group*>& stages) {
    if (!stages.empty()) best_[used] = std::max(best_[used], rate(stages));
    if (static_cast<int32_t>(stages.size()) == cost_.layers) return;
    for (const Group& group : groups_) {
      if (group.devices & used) continue;
      stages.push_back(&group);
      extend(used | group.devices, stages);
      stages.pop_back();
    }
  }

  double hop(const Group& a, const Group& b, double batch) const {
    const LinkSpeed& link = links_.between(a.first, b.first);
    const double row = cost_.hidden * options_.assumptions.hop_element_bytes;
    const double bandwidth = link.bandwidth_bytes_per_s();
    return options_.load.output_tokens / batch *
               hop_occupancy_s(link.latency_s(), bandwidth, row * batch) +
           options_.load.prompt_tokens * row / bandwidth;
  }

  double rate(const std::vector<const Group*>& stages) const {
    double best = 0;
    const double count = double(stages.size());
    for (size_t b = 0; b < options_.batches.size(); ++b) {
      const double batch = options_.batches[b];
      double hops = 0;
      for (size_t k = 0; k + 1 < stages.size(); ++k) {
        hops = std::max(hops, hop(*stages[k], *stages[k + 1], batch));
      }
      const double limit =
          options_.tpot_limit_s.value_or(1e300) * options_.load.output_tokens / (count * batch);
      const double tau = std::max(hops, best_cut(stages, b, count * batch));
      if (tau <= limit * (1 + 1e-12)) best = std::max(best, 1 / tau);
    }
    return best;
  }

  // The least worst stage over all cuts: layer after layer to the stage that is then least loaded,
  // which is optimal for one machine each with equal jobs.
  double best_cut(const std::vector<const Group*>& stages, size_t b, double in_flight) const {
    const size_t count = stages.size();
    std::vector<double> load(count), each(count);
    std::vector<int32_t> room(count);
    int64_t total = 0;
    for (size_t k = 0; k < count; ++k) {
      const Group& group = *stages[k];
      const bool head = k + 1 == count;
      const double bytes = group.usable - (head ? group.head_bytes : 0);
      const double per_layer = group.layer_bytes + in_flight * group.kv_bytes;
      room[k] = bytes < per_layer ? 0 : static_cast<int32_t>(bytes / per_layer * (1 + 1e-12));
      if (room[k] < 1) return std::numeric_limits<double>::infinity();
      each[k] = group.request_s[b];
      load[k] = (head ? group.head_s[b] : 0) + each[k];
      --room[k];
      total += room[k] + 1;
    }
    if (total < cost_.layers) return std::numeric_limits<double>::infinity();
    for (int32_t left = cost_.layers - static_cast<int32_t>(count); left > 0; --left) {
      size_t chosen = count;
      for (size_t k = 0; k < count; ++k) {
        if (room[k] < 1) continue;
        if (chosen == count || load[k] + each[k] < load[chosen] + each[chosen]) chosen = k;
      }
      load[chosen] += each[chosen];
      --room[chosen];
    }
    return *std::max_element(load.begin(), load.end());
  }

  const Topology& topology_;
  const PlacementOptions& options_;
  LinkGraph links_;
  ModelCost cost_;
  std::vector<Group> groups_;
  std::vector<double> best_;  // of one replica, by set of devices
};

}  // namespace

double brute_force_throughput(const Topology& topology, const ModelSpec& model,
                              const PlacementOptions& options) {
  return BruteForce(topology, model, options).solve();
}

}  // namespace trireme
