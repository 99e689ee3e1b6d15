// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "topology/assign.h"

namespace trireme {
namespace {

constexpr size_t kMostWorkers = 128;  // every two of them are compared
constexpr int kMostRounds = 20;

class Exchange {
 public:
  Exchange(const PlannerInput& input, const LinkGraph& links, const PlacementOptions& options,
           std::vector<PlacedReplica>& placed)
      : input_(input), links_(links), options_(options), placed_(placed) {}

  void run() {
    std::vector<std::vector<int>> spare = spare_devices();
    for (const PlacedReplica& replica : placed_) limits_.push_back(stage_request_s(replica));
    for (int round = 0; round < kMostRounds; ++round) {
      bool better = false;
      for (size_t r = 0; r < placed_.size(); ++r) {
        for (size_t k = 0; k < placed_[r].stages.size(); ++k) {
          better = with_spare(r, k, spare) || better;
          better = with_others(r, k) || better;
        }
      }
      if (!better) return;
    }
  }

 private:
  // By pool: single devices that no stage has.
  std::vector<std::vector<int>> spare_devices() const {
    std::vector<bool> used;
    for (const PlacedReplica& replica : placed_) {
      for (const PlacedStage& stage : replica.stages) {
        for (const int worker : stage.workers) {
          used.resize(std::max(used.size(), static_cast<size_t>(worker) + 1), false);
          used[static_cast<size_t>(worker)] = true;
        }
      }
    }
    std::vector<std::vector<int>> spare(input_.problem.pools.size());
    for (const IslandUse& island : input_.islands) {
      for (const int worker : island.workers) {
        const auto at = static_cast<size_t>(worker);
        if (at >= used.size() || !used[at])
          spare[static_cast<size_t>(island.pool)].push_back(worker);
      }
    }
    return spare;
  }

  const StageType& type_of(const PlacedStage& stage) const {
    return input_.problem.types[static_cast<size_t>(stage.type)];
  }

  // Seconds per request of the slowest stage: hops up to it cost nothing.
  double stage_request_s(const PlacedReplica& replica) const {
    const auto b = static_cast<size_t>(replica.batch);
    double slowest = 0;
    for (const PlacedStage& stage : replica.stages) {
      const bool head = &stage == &replica.stages.back();
      const StageType& type = type_of(stage);
      slowest =
          std::max(slowest, stage.layers * type.request_s[b] + (head ? type.head_request_s[b] : 0));
    }
    return slowest;
  }

  double hop(int a, int b, int batch) {
    const auto [entry, fresh] = hops_.try_emplace({a, b, batch}, 0);
    if (fresh) {
      const LinkSpeed& link = links_.between(a, b);
      const double row = input_.model.hidden * options_.assumptions.hop_element_bytes;
      const auto at = static_cast<size_t>(batch);
      entry->second = options_.objective == OBJECTIVE_LATENCY
                          ? hop_s(link.latency_s(), link.bandwidth_bytes_per_s(), row)
                          : request_hop_s(link, options_, row, input_.problem.batches[at]);
    }
    return entry->second;
  }

  // What the hops of a replica cost: their sum, or by how much they are busier than its stages,
  // the worst more than the others.
  double cost(size_t r) {
    const PlacedReplica& replica = placed_[r];
    double sum = 0;
    for (size_t k = 0; k + 1 < replica.stages.size(); ++k) {
      const double seconds =
          hop(replica.stages[k].workers[0], replica.stages[k + 1].workers[0], replica.batch);
      if (options_.objective == OBJECTIVE_LATENCY) {
        sum += seconds;
      } else if (seconds > limits_[r]) {
        const double excess = seconds / limits_[r] - 1;
        sum += excess * excess;
      }
    }
    return sum;
  }

  // Keeps an exchange if it makes hops cheaper.
  bool try_exchange(size_t r, std::vector<int>& mine, size_t other, std::vector<int>& theirs) {
    const auto both = [&] { return cost(r) + (other == r ? 0 : cost(other)); };
    const double before = both();
    std::swap(mine, theirs);
    if (both() < before * (1 - 1e-9)) return true;
    std::swap(mine, theirs);
    return false;
  }

  bool with_spare(size_t r, size_t k, std::vector<std::vector<int>>& spare) {
    PlacedStage& stage = placed_[r].stages[k];
    if (stage.workers.size() != 1 || cost(r) == 0) return false;
    bool better = false;
    for (int& worker : spare[static_cast<size_t>(type_of(stage).pool)]) {
      std::vector<int> one = {worker};
      if (!try_exchange(r, stage.workers, r, one)) continue;
      worker = one[0];
      better = true;
    }
    return better;
  }

  bool with_others(size_t r, size_t k) {
    bool better = false;
    for (size_t other = 0; other < placed_.size(); ++other) {
      if (cost(r) == 0 && cost(other) == 0) continue;
      for (size_t j = other == r ? k + 1 : 0; other >= r && j < placed_[other].stages.size(); ++j) {
        PlacedStage& a = placed_[r].stages[k];
        PlacedStage& b = placed_[other].stages[j];
        if (a.type != b.type) continue;
        better = try_exchange(r, a.workers, other, b.workers) || better;
      }
    }
    return better;
  }

  const PlannerInput& input_;
  const LinkGraph& links_;
  const PlacementOptions& options_;
  std::vector<PlacedReplica>& placed_;
  std::vector<double> limits_;  // by replica
  std::map<std::tuple<int, int, int>, double> hops_;
};

}  // namespace

void exchange_devices(const PlannerInput& input, const LinkGraph& links,
                      const PlacementOptions& options, std::vector<PlacedReplica>& placed) {
  size_t workers = 0;
  for (const IslandUse& island : input.islands) workers += island.workers.size();
  if (input.uniform_links || workers > kMostWorkers) return;
  Exchange(input, links, options, placed).run();
}

}  // namespace trireme
