// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <ctime>
#include <numeric>

#include "topology/search.h"

namespace trireme {
namespace {

constexpr double kRounding = 1 + 1e-12;

}  // namespace

int32_t memory_layers(const StageType& type, double kv_positions, double extra_bytes) {
  const double room = type.usable_bytes - type.fixed_bytes - extra_bytes;
  if (room <= 0) return 0;
  const double layers = room / (type.layer_bytes + kv_positions * type.kv_token_bytes);
  return static_cast<int32_t>(std::min(layers * kRounding, 1e6));
}

namespace {

// Stages of one type with the same duties.
struct Group {
  int type = 0;
  int32_t stages = 0;
  bool embedding = false, head = false;
  double layer_s = 0, head_s = 0;
  int32_t memory = 0;  // layers

  int32_t layers(double tau) const {
    const double room = (tau - head_s) / layer_s * kRounding;
    return room < 1 ? 0 : static_cast<int32_t>(std::min<double>(room, memory));
  }
};

double extra_bytes(const StageType& type, bool embedding, bool head) {
  if (embedding && head) return type.head_and_embedding_bytes;
  return (embedding ? type.embedding_bytes : 0) + (head ? type.head_bytes : 0);
}

// Splits the counts into groups, `first` with the embedding and `last` with the head. Empty if one
// stage would have to be both while there are more.
std::vector<Group> make_groups(const SearchProblem& problem, const Counts& counts, int first,
                               int last, double kv_positions) {
  std::vector<Group> groups;
  const int32_t total = std::accumulate(counts.begin(), counts.end(), 0);
  const auto add = [&](int type, int32_t stages, bool embedding, bool head) {
    if (stages == 0) return;
    Group group;
    group.type = type;
    group.stages = stages;
    group.embedding = embedding;
    group.head = head;
    const StageType& t = problem.types[static_cast<size_t>(type)];
    group.memory = memory_layers(t, kv_positions, extra_bytes(t, embedding, head));
    groups.push_back(group);
  };
  if (total == 1) {
    if (first != last) return groups;
    add(first, 1, true, true);
    return groups;
  }
  for (size_t index = 0; index < counts.size(); ++index) {
    const int type = static_cast<int>(index);
    const int32_t rest = counts[index] - (type == first) - (type == last);
    if (rest < 0) return {};
    add(type, rest, false, false);
  }
  add(first, 1, true, false);
  add(last, 1, false, true);
  return groups;
}

int64_t capacity(const std::vector<Group>& groups, double tau) {
  int64_t layers = 0;
  for (const Group& group : groups) layers += int64_t{group.stages} * group.layers(tau);
  return layers;
}

// The least time in which the groups hold `layers` layers if layers could be cut.
double relaxed_tau(const std::vector<Group>& groups, int32_t layers, double tau) {
  for (size_t round = 0; round <= groups.size(); ++round) {
    double speed = 0, left = layers;
    for (const Group& group : groups) {
      if (group.head_s + group.memory * group.layer_s <= tau) {
        left -= double(group.stages) * group.memory;
      } else if (group.head_s < tau || round == 0) {
        speed += group.stages / group.layer_s;
        left += group.stages * group.head_s / group.layer_s;
      }
    }
    if (left <= 0 || speed <= 0) return tau;
    const double next = left / speed;
    if (next <= tau * kRounding) return tau;
    tau = next;
  }
  return tau;
}

// The least tau within [least, most] at which whole layers fit; negative if there is none.
double least_tau(const std::vector<Group>& groups, int32_t layers, double least, double most) {
  int64_t room = 0;
  for (const Group& group : groups) {
    if (group.memory < 1) return -1;
    room += int64_t{group.stages} * group.memory;
  }
  if (room < layers) return -1;
  double tau = least;
  for (const Group& group : groups) tau = std::max(tau, group.head_s + group.layer_s);
  tau = std::max(tau, relaxed_tau(groups, layers, tau) / kRounding);
  while (tau <= most * kRounding) {
    if (capacity(groups, tau) >= layers) return tau;
    double next = std::numeric_limits<double>::infinity();
    for (const Group& group : groups) {
      const int32_t have = group.layers(tau);
      if (have < group.memory) next = std::min(next, group.head_s + (have + 1) * group.layer_s);
    }
    if (!(next > tau)) next = tau * (1 + 1e-12);
    tau = next;
  }
  return -1;
}

// Cuts exactly problem.layers at tau; what is too much is taken from the stages that a prompt
// passes slowest. Every stage keeps a layer.
std::vector<StageLayers> cut(const SearchProblem& problem, const std::vector<Group>& groups,
                             double tau) {
  std::vector<StageLayers> stages;
  int64_t spare = capacity(groups, tau) - problem.layers;
  for (const Group& group : groups) {
    for (int32_t n = 0; n < group.stages; ++n) {
      stages.push_back({group.type, group.layers(tau), group.embedding, group.head});
    }
  }
  std::vector<size_t> order(stages.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return problem.types[static_cast<size_t>(stages[a].type)].chunk_s >
           problem.types[static_cast<size_t>(stages[b].type)].chunk_s;
  });
  // First what equal stages can give evenly, so that they stay alike.
  while (spare > 0) {
    bool given = false;
    for (const size_t index : order) {
      if (spare > 0 && stages[index].layers > 1) {
        --stages[index].layers;
        --spare;
        given = true;
      }
    }
    if (!given) return {};
  }
  return stages;
}

double time_to_first_token(const SearchProblem& problem, const std::vector<StageLayers>& stages) {
  double sum = 0, most = 0;
  for (const StageLayers& stage : stages) {
    const double chunk = stage.layers * problem.types[static_cast<size_t>(stage.type)].chunk_s;
    sum += chunk;
    most = std::max(most, chunk);
  }
  return sum + (problem.chunks - 1) * most;
}

struct Try {
  double tau = -1;
  std::vector<StageLayers> stages;
};

// The least tau whose cut also keeps the limit on the time to the first token.
Try try_groups(const SearchProblem& problem, const std::vector<Group>& groups, double least,
               double most) {
  Try result;
  double tau = least_tau(groups, problem.layers, least, most);
  while (tau >= 0) {
    result.stages = cut(problem, groups, tau);
    if (result.stages.empty()) return {};
    if (time_to_first_token(problem, result.stages) <= problem.ttft_limit_s) {
      result.tau = tau;
      return result;
    }
    if (std::isinf(most)) most = 1e3 * tau;
    tau = tau * 1.01 <= most ? least_tau(groups, problem.layers, tau * 1.01, most) : -1;
  }
  return {};
}

// Visits the types that may hold embedding and head.
template <typename Visit>
void for_each_ends(const SearchProblem& problem, const Counts& counts, Visit visit) {
  const int types = static_cast<int>(counts.size());
  // Without an embedding to hold and with equal hops, all first stages are alike.
  bool embeddings = !problem.pool_hop_token_s.empty();
  for (int type = 0; type < types; ++type) {
    embeddings = embeddings || (counts[static_cast<size_t>(type)] > 0 &&
                                problem.types[static_cast<size_t>(type)].embedding_bytes > 0);
  }
  const int32_t total = std::accumulate(counts.begin(), counts.end(), 0);
  const auto region = [&](int type) {
    if (problem.pool_region.empty()) return 0;
    return problem.pool_region[static_cast<size_t>(problem.types[static_cast<size_t>(type)].pool)];
  };
  // Of equally good ones the first found stays: the head at the end, as ranks are counted, and not
  // in the first stage's region, to which the way would lead back.
  for (int last = types - 1; last >= 0; --last) {
    if (counts[static_cast<size_t>(last)] == 0) continue;
    if (total == 1) {
      visit(last, last);
      return;
    }
    bool visited = false;
    for (const bool back : {false, true}) {
      for (int first = 0; first < types; ++first) {
        if ((region(first) == region(last)) != back || (visited && !embeddings)) continue;
        if (counts[static_cast<size_t>(first)] - (first == last) < 1) continue;
        visit(first, last);
        visited = true;
      }
    }
  }
}

}  // namespace

int32_t Pool::devices() const {
  int32_t total = 0;
  for (const auto& [size, count] : islands) total += size * count;
  return total;
}

Stopwatch::Stopwatch(double budget_s) : start_s_(0), budget_s_(budget_s) { start_s_ = elapsed_s(); }

double Stopwatch::elapsed_s() const {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) - start_s_;
}

namespace {

// Zero if a replica may not have so many.
int32_t stages_of(const SearchProblem& problem, const Counts& counts) {
  const int32_t stages = std::accumulate(counts.begin(), counts.end(), 0);
  if (stages > std::min(problem.max_stages, problem.layers)) return 0;
  return problem.fixed_stages > 0 && stages != problem.fixed_stages ? 0 : stages;
}

// The regions of these stages, as bits.
size_t regions_of(const SearchProblem& problem, const Counts& counts) {
  size_t regions = 0;
  for (size_t type = 0; type < counts.size(); ++type) {
    if (counts[type] == 0) continue;
    regions |= size_t{1} << problem.pool_region[static_cast<size_t>(problem.types[type].pool)];
  }
  return regions;
}

// The least that hops between these stages cost, `first` and `last` where they are.
double hops(const SearchProblem& problem, const Counts& counts, int first, int last, bool sum,
            const std::vector<std::vector<double>>& by_pool) {
  std::vector<size_t> pools = {static_cast<size_t>(problem.types[static_cast<size_t>(first)].pool)};
  for (size_t type = 0; type < counts.size(); ++type) {
    const int32_t inner =
        counts[type] - (static_cast<int>(type) == first) - (static_cast<int>(type) == last);
    for (int32_t n = 0; n < inner; ++n) {
      pools.push_back(static_cast<size_t>(problem.types[type].pool));
    }
  }
  pools.push_back(static_cast<size_t>(problem.types[static_cast<size_t>(last)].pool));
  std::vector<std::vector<double>> hop(pools.size(), std::vector<double>(pools.size()));
  for (size_t i = 0; i < pools.size(); ++i) {
    for (size_t j = 0; j < pools.size(); ++j) hop[i][j] = by_pool[pools[i]][pools[j]];
  }
  return order_stages(hop, sum).cost;
}

}  // namespace

std::optional<Replica> best_replica(const SearchProblem& problem, const Counts& counts,
                                    double at_least) {
  const int32_t stages = stages_of(problem, counts);
  if (stages < 1) return std::nullopt;
  const std::vector<double>& hop_request_s =
      problem.pool_region.empty() ? problem.hop_request_s
                                  : problem.region_hop_request_s[regions_of(problem, counts)];
  std::optional<Replica> best;
  for (size_t b = 0; b < problem.batches.size(); ++b) {
    const double sequences = double(stages) * problem.batches[b];
    if (sequences > problem.max_sequences) break;
    const double kv = std::max(sequences * problem.kv_positions, problem.least_kv_positions);
    double most = problem.tpot_limit_s * problem.output_tokens / sequences;
    if (at_least > 0) most = std::min(most, 1 / at_least);
    if (stages > 1 && hop_request_s[b] > most) continue;
    for_each_ends(problem, counts, [&](int first, int last) {
      double least = stages > 1 ? hop_request_s[b] : 0;
      if (stages > 1 && !problem.pool_hop_request_s.empty()) {
        least = hops(problem, counts, first, last, false, problem.pool_hop_request_s[b]);
        if (least > most) return;
      }
      std::vector<Group> groups = make_groups(problem, counts, first, last, kv);
      for (Group& group : groups) {
        const StageType& type = problem.types[static_cast<size_t>(group.type)];
        group.layer_s = type.request_s[b];
        group.head_s = group.head ? type.head_request_s[b] : 0;
      }
      Try found = try_groups(problem, groups, least, best ? std::min(most, best->request_s) : most);
      if (found.tau < 0 || (best && found.tau >= best->request_s)) return;
      best = Replica{counts,    static_cast<int>(b), stages,
                     found.tau, 1 / found.tau,       std::move(found.stages)};
    });
  }
  if (best && at_least > 0 && best->rate <= at_least * kRounding) return std::nullopt;
  return best;
}

std::optional<Replica> quickest_replica(const SearchProblem& problem, const Counts& counts,
                                        double at_most) {
  const int32_t stages = stages_of(problem, counts);
  if (stages < 1) return std::nullopt;
  std::optional<Replica> best;
  for_each_ends(problem, counts, [&](int first, int last) {
    std::vector<StageLayers> cut_stages;
    double seconds = (stages - 1) * problem.hop_token_s;
    if (!problem.pool_region.empty()) {
      seconds += problem.region_hop_token_s[regions_of(problem, counts)];
    }
    if (stages > 1 && !problem.pool_hop_token_s.empty()) {
      seconds = hops(problem, counts, first, last, true, problem.pool_hop_token_s);
    }
    int32_t left = problem.layers - stages;
    std::vector<std::pair<double, size_t>> order;
    std::vector<int32_t> room;
    for (const Group& group :
         make_groups(problem, counts, first, last, problem.latency_kv_positions)) {
      const StageType& type = problem.types[static_cast<size_t>(group.type)];
      const double head = problem.latency_head_share * type.head_bytes;
      const int32_t memory = memory_layers(
          type, problem.latency_kv_positions,
          problem.latency_head_share > 0 ? head : extra_bytes(type, group.embedding, group.head));
      if (memory < 1) return;
      if (group.head) seconds += type.head_step_s[0];
      for (int32_t n = 0; n < group.stages; ++n) {
        seconds += type.decode_s[0];
        order.emplace_back(type.decode_s[0], cut_stages.size());
        room.push_back(memory - 1);
        cut_stages.push_back({group.type, 1, group.embedding, group.head});
      }
    }
    if (cut_stages.empty()) return;
    std::stable_sort(order.begin(), order.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [layer_s, index] : order) {
      const int32_t more = std::min(left, room[index]);
      cut_stages[index].layers += more;
      seconds += more * layer_s;
      left -= more;
    }
    if (left > 0 || seconds >= (best ? best->request_s : at_most)) return;
    best = Replica{counts, 0, 1, seconds, 1 / (seconds * problem.output_tokens), cut_stages};
  });
  return best;
}

}  // namespace trireme
