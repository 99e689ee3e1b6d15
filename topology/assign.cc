// SPDX-License-Identifier: Apache-2.0
#include "topology/assign.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace trireme {
namespace {

// Devices of one island that are still free, by position.
class Free {
 public:
  explicit Free(const IslandUse& island)
      : workers_(&island.workers), free_(island.workers.size(), true) {}

  // Neighbours from a multiple of the size where there are some, else what is free.
  std::vector<int> take(int32_t size) {
    const auto n = static_cast<size_t>(size);
    std::vector<size_t> at;
    for (size_t begin = 0; begin + n <= free_.size() && at.empty(); begin += n) {
      const auto first = free_.begin() + static_cast<long>(begin);
      if (std::find(first, first + static_cast<long>(n), false) != first + static_cast<long>(n))
        continue;
      for (size_t i = 0; i < n; ++i) at.push_back(begin + i);
    }
    for (size_t i = 0; i < free_.size() && at.size() < n; ++i) {
      if (free_[i]) at.push_back(i);
    }
    CHECK(at.size() == n, "an island has too few devices left");
    std::vector<int> taken;
    for (const size_t i : at) {
      free_[i] = false;
      taken.push_back((*workers_)[i]);
    }
    return taken;
  }

 private:
  const std::vector<int>* workers_;
  std::vector<bool> free_;
};

// One stage of one replica that needs devices.
struct Need {
  size_t replica = 0, stage = 0;
  int pool = 0;
  int32_t tp = 1;
  int island = -1;
};

// Gives the needs of one pool, largest first, to islands of these sizes by depth-first search;
// first fit alone can fail where sizes are no powers of two.
bool pack(std::vector<Need*>& needs, size_t at, const std::vector<int>& islands,
          std::vector<int32_t>& left, int64_t& budget) {
  if (at == needs.size()) return true;
  if (--budget < 0) return false;
  std::vector<int32_t> tried;
  for (size_t i = 0; i < islands.size(); ++i) {
    if (left[i] < needs[at]->tp) continue;
    if (std::find(tried.begin(), tried.end(), left[i]) != tried.end()) continue;
    tried.push_back(left[i]);
    left[i] -= needs[at]->tp;
    needs[at]->island = islands[i];
    if (pack(needs, at + 1, islands, left, budget)) return true;
    left[i] += needs[at]->tp;
  }
  return false;
}

// Replica after replica, each in as few islands as can be: the fullest island that still holds all
// that is left of a pool's needs, else the one that holds most. False if that runs out of room.
bool pack_near(std::vector<Need>& needs, const PlannerInput& input) {
  std::vector<int32_t> left;
  for (const IslandUse& island : input.islands) {
    left.push_back(static_cast<int32_t>(island.workers.size()));
  }
  std::vector<std::vector<int>> of_pool(input.problem.pools.size());
  for (size_t i = 0; i < input.islands.size(); ++i) {
    of_pool[static_cast<size_t>(input.islands[i].pool)].push_back(static_cast<int>(i));
  }
  for (size_t begin = 0; begin < needs.size();) {
    size_t end = begin;
    while (end < needs.size() && needs[end].replica == needs[begin].replica &&
           needs[end].pool == needs[begin].pool) {
      ++end;
    }
    while (begin < end) {
      int best = -1;
      int32_t best_held = 0;
      for (const int island : of_pool[static_cast<size_t>(needs[begin].pool)]) {
        int32_t room = left[static_cast<size_t>(island)], held = 0;
        for (size_t i = begin; i < end && needs[i].tp <= room; ++i) {
          room -= needs[i].tp;
          held += needs[i].tp;
        }
        const bool tighter = best >= 0 && held == best_held &&
                             left[static_cast<size_t>(island)] < left[static_cast<size_t>(best)];
        if (held > best_held || tighter) {
          best = island;
          best_held = held;
        }
      }
      if (best < 0) return false;
      int32_t& room = left[static_cast<size_t>(best)];
      while (begin < end && needs[begin].tp <= room) {
        room -= needs[begin].tp;
        needs[begin++].island = best;
      }
    }
  }
  return true;
}

void pack_exactly(std::vector<Need>& needs, const PlannerInput& input) {
  for (size_t pool = 0; pool < input.problem.pools.size(); ++pool) {
    std::vector<Need*> of_pool;
    for (Need& need : needs) {
      if (need.pool == static_cast<int>(pool)) of_pool.push_back(&need);
    }
    std::stable_sort(of_pool.begin(), of_pool.end(),
                     [](const Need* a, const Need* b) { return a->tp > b->tp; });
    std::vector<int> islands;
    std::vector<int32_t> left;
    for (size_t i = 0; i < input.islands.size(); ++i) {
      if (input.islands[i].pool != static_cast<int>(pool)) continue;
      islands.push_back(static_cast<int>(i));
      left.push_back(static_cast<int32_t>(input.islands[i].workers.size()));
    }
    int64_t budget = 2'000'000;
    if (!pack(of_pool, 0, islands, left, budget)) {
      throw Error(Code::kInternal,
                  "cannot place the model: its stages were not packed into the islands within two "
                  "million steps; give --tp 1, 2, 4 or 8");
    }
  }
}

// Pipeline order: embedding first, head last, between them as the links want it.
void order(const PlannerInput& input, const LinkGraph& links, const PlacementOptions& options,
           bool latency, std::vector<StageLayers>& roles, PlacedReplica& replica) {
  const size_t count = replica.stages.size();
  std::vector<size_t> by_rank(count);
  std::iota(by_rank.begin(), by_rank.end(), 0);
  // Alike in all but their rank: in order of rank.
  const auto place = [&](size_t i) {
    return std::tuple(roles[i].head ? 2 : roles[i].embedding ? 0 : 1, replica.stages[i].workers);
  };
  std::sort(by_rank.begin(), by_rank.end(),
            [&](size_t a, size_t b) { return place(a) < place(b); });
  std::vector<PlacedStage> sorted;
  for (const size_t i : by_rank) sorted.push_back(replica.stages[i]);
  if (count > 3 && !input.uniform_links) {
    const double row = input.model.hidden * options.assumptions.hop_element_bytes;
    const int32_t batch = input.problem.batches[static_cast<size_t>(replica.batch)];
    std::vector<std::vector<double>> hop(count, std::vector<double>(count, 0));
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = 0; j < count; ++j) {
        if (i == j) continue;
        const LinkSpeed& link = links.between(sorted[i].workers[0], sorted[j].workers[0]);
        hop[i][j] = latency ? hop_s(link.latency_s(), link.bandwidth_bytes_per_s(), row)
                            : request_hop_s(link, options, row, batch);
      }
    }
    std::vector<PlacedStage> ordered;
    for (const int i : order_stages(hop, latency).order) {
      ordered.push_back(sorted[static_cast<size_t>(i)]);
    }
    sorted = std::move(ordered);
  }
  replica.stages = std::move(sorted);
}

// Equal stages of a replica may swap devices: the lowest ranks hold the embedding, the highest the
// head.
void swap_equal_stages(std::vector<StageLayers>& roles, std::vector<PlacedStage>& stages) {
  for (size_t i = 0; i < stages.size(); ++i) {
    for (size_t j = i + 1; j < stages.size(); ++j) {
      if (stages[i].type != stages[j].type) continue;
      const int role_i = roles[i].head ? 2 : roles[i].embedding ? 0 : 1;
      const int role_j = roles[j].head ? 2 : roles[j].embedding ? 0 : 1;
      const bool wrong = role_i < role_j ? stages[i].workers > stages[j].workers
                                         : role_i > role_j && stages[i].workers < stages[j].workers;
      if (wrong) std::swap(stages[i].workers, stages[j].workers);
    }
  }
}

}  // namespace

std::vector<PlacedReplica> assign_devices(const PlannerInput& input, const LinkGraph& links,
                                          const PlacementOptions& options,
                                          const SearchResult& result) {
  const SearchProblem& problem = input.problem;
  std::vector<PlacedReplica> placed;
  std::vector<std::vector<StageLayers>> roles;
  std::vector<Need> needs;
  for (const auto& [replica, times] : result.replicas) {
    for (int32_t n = 0; n < times; ++n) {
      std::vector<StageLayers> stages = replica.stages;
      std::stable_sort(stages.begin(), stages.end(), [&](const auto& a, const auto& b) {
        const StageType& x = problem.types[static_cast<size_t>(a.type)];
        const StageType& y = problem.types[static_cast<size_t>(b.type)];
        return std::pair(x.pool, -x.tp) < std::pair(y.pool, -y.tp);
      });
      PlacedReplica entry{replica.batch, replica.micro_batches, {}};
      for (size_t i = 0; i < stages.size(); ++i) {
        const StageType& type = problem.types[static_cast<size_t>(stages[i].type)];
        needs.push_back({placed.size(), i, type.pool, type.tp, -1});
        entry.stages.push_back({stages[i].type, stages[i].layers, {}});
      }
      placed.push_back(std::move(entry));
      roles.push_back(std::move(stages));
    }
  }
  if (!pack_near(needs, input)) pack_exactly(needs, input);
  std::vector<Free> free(input.islands.begin(), input.islands.end());
  // Larger groups first, so that those that stay aligned can.
  std::vector<size_t> by_size(needs.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](size_t a, size_t b) { return needs[a].tp > needs[b].tp; });
  for (const size_t i : by_size) {
    const Need& need = needs[i];
    placed[need.replica].stages[need.stage].workers =
        free[static_cast<size_t>(need.island)].take(need.tp);
  }
  for (size_t i = 0; i < placed.size(); ++i) {
    swap_equal_stages(roles[i], placed[i].stages);
    order(input, links, options, options.objective == OBJECTIVE_LATENCY, roles[i], placed[i]);
  }
  exchange_devices(input, links, options, placed);
  std::stable_sort(placed.begin(), placed.end(),
                   [](const PlacedReplica& a, const PlacedReplica& b) {
                     return a.stages.front().workers < b.stages.front().workers;
                   });
  return placed;
}

}  // namespace trireme
