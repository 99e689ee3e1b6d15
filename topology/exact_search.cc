// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>

#include "topology/search.h"

namespace trireme {
namespace {

// Adds to `out` every multiset of stages, by position in pool.types, that one island holds; once
// there are more than `most`, no further ones.
void partitions(const SearchProblem& problem, const Pool& pool, int32_t devices, size_t from,
                size_t most, Counts& current, std::set<Counts>& out) {
  out.insert(current);
  if (out.size() > most) return;
  for (size_t at = from; at < pool.types.size(); ++at) {
    const int32_t tp = problem.types[static_cast<size_t>(pool.types[at])].tp;
    if (tp > devices) continue;
    ++current[at];
    partitions(problem, pool, devices - tp, at, most, current, out);
    --current[at];
    if (out.size() > most) return;
  }
}

// Those that all islands of a pool hold together, or nothing if there are more than `most`.
std::optional<std::set<Counts>> pool_vectors(const SearchProblem& problem, const Pool& pool,
                                             size_t most) {
  std::set<Counts> all = {Counts(pool.types.size(), 0)};
  for (const auto& [size, count] : pool.islands) {
    std::set<Counts> one;
    Counts current(pool.types.size(), 0);
    // An island of many devices has too many multisets to list: estimate by its single devices.
    if (size > 128) return std::nullopt;
    partitions(problem, pool, size, 0, most, current, one);
    if (one.size() > most) return std::nullopt;
    for (int32_t n = 0; n < count; ++n) {
      std::set<Counts> sums;
      for (const Counts& a : all) {
        for (const Counts& b : one) {
          Counts sum = a;
          for (size_t i = 0; i < sum.size(); ++i) sum[i] += b[i];
          sums.insert(std::move(sum));
        }
        if (sums.size() > most) return std::nullopt;
      }
      all = std::move(sums);
    }
  }
  return all;
}

int64_t devices_of(const SearchProblem& problem, const Counts& counts) {
  int64_t devices = 0;
  for (size_t type = 0; type < counts.size(); ++type) {
    devices += int64_t{counts[type]} * problem.types[type].tp;
  }
  return devices;
}

}  // namespace

std::optional<CountVectors> CountVectors::make(const SearchProblem& problem, size_t most) {
  std::vector<Counts> all = {Counts(problem.types.size(), 0)};
  for (const Pool& pool : problem.pools) {
    const auto vectors = pool_vectors(problem, pool, most);
    if (!vectors || vectors->size() * all.size() > most) return std::nullopt;
    std::vector<Counts> product;
    product.reserve(all.size() * vectors->size());
    for (const Counts& base : all) {
      for (const Counts& vector : *vectors) {
        Counts sum = base;
        for (size_t i = 0; i < vector.size(); ++i) {
          sum[static_cast<size_t>(pool.types[i])] = vector[i];
        }
        product.push_back(std::move(sum));
      }
    }
    all = std::move(product);
  }
  CountVectors result;
  // Smaller vectors have fewer devices.
  std::vector<std::pair<int64_t, size_t>> order;
  for (size_t i = 0; i < all.size(); ++i) order.emplace_back(devices_of(problem, all[i]), i);
  std::sort(order.begin(), order.end());
  Counts most_of(problem.types.size(), 0);
  for (const Counts& vector : all) {
    for (size_t i = 0; i < vector.size(); ++i) most_of[i] = std::max(most_of[i], vector[i]);
  }
  uint64_t keys = 1;
  std::vector<uint64_t> radix;
  for (const int32_t count : most_of) {
    radix.push_back(keys);
    keys *= static_cast<uint64_t>(count) + 1;
    if (keys > (uint64_t{1} << 26)) return std::nullopt;
  }
  result.index_.assign(keys, UINT32_MAX);
  for (const auto& [devices, at] : order) {
    uint64_t key = 0;
    for (size_t i = 0; i < radix.size(); ++i) key += static_cast<uint64_t>(all[at][i]) * radix[i];
    result.index_[key] = static_cast<uint32_t>(result.vectors_.size());
    result.keys_.push_back(key);
    result.vectors_.push_back(std::move(all[at]));
  }
  return result;
}

namespace {

struct Useful {
  size_t index;
  Replica replica;
  std::vector<std::pair<size_t, int32_t>> needs;  // (type, stages)

  bool fits(const Counts& counts) const {
    return std::all_of(needs.begin(), needs.end(),
                       [&](const auto& need) { return counts[need.first] >= need.second; });
  }
};

Useful make_useful(size_t index, Replica replica) {
  Useful entry{index, std::move(replica), {}};
  const Counts& counts = entry.replica.counts;
  for (size_t type = 0; type < counts.size(); ++type) {
    if (counts[type] > 0) entry.needs.emplace_back(type, counts[type]);
  }
  return entry;
}

void collect(const std::vector<Useful>& useful, const std::vector<int32_t>& taken,
             SearchResult& result) {
  std::map<int32_t, int32_t> times;
  for (const int32_t u : taken) ++times[u];
  for (const auto& [u, count] : times) {
    result.replicas.emplace_back(useful[static_cast<size_t>(u)].replica, count);
  }
}

// Exactly problem.fixed_replicas replicas: the same with one more dimension.
SearchResult exact_replicas(const SearchProblem& problem, const CountVectors& vectors) {
  std::vector<Useful> useful;
  for (size_t v = 1; v < vectors.size(); ++v) {
    if (auto replica = best_replica(problem, vectors[v])) {
      useful.push_back(make_useful(v, std::move(*replica)));
    }
  }
  const auto replicas = static_cast<size_t>(problem.fixed_replicas);
  std::vector<std::vector<double>> value(replicas + 1, std::vector<double>(vectors.size(), -1));
  std::vector<std::vector<int32_t>> taken(replicas + 1, std::vector<int32_t>(vectors.size(), -1));
  std::fill(value[0].begin(), value[0].end(), 0);
  size_t best = 0;
  for (size_t n = 1; n <= replicas; ++n) {
    for (size_t v = 1; v < vectors.size(); ++v) {
      for (size_t u = 0; u < useful.size(); ++u) {
        if (!useful[u].fits(vectors[v])) continue;
        const double rest = value[n - 1][vectors.minus(v, useful[u].index)];
        if (rest < 0 || rest + useful[u].replica.rate <= value[n][v] * (1 + 1e-12)) continue;
        value[n][v] = rest + useful[u].replica.rate;
        taken[n][v] = static_cast<int32_t>(u);
      }
      if (n == replicas && value[n][v] > value[n][best]) best = v;
    }
  }
  SearchResult result;
  result.exact = true;
  result.value = result.bound = std::max(0.0, value[replicas][best]);
  std::vector<int32_t> chosen;
  for (size_t n = replicas, v = best; result.value > 0 && n > 0; --n) {
    chosen.push_back(taken[n][v]);
    v = vectors.minus(v, useful[static_cast<size_t>(taken[n][v])].index);
  }
  collect(useful, chosen, result);
  return result;
}

}  // namespace

SearchResult exact_throughput(const SearchProblem& problem, const CountVectors& vectors) {
  if (problem.fixed_replicas > 0) return exact_replicas(problem, vectors);
  std::vector<Useful> useful;
  std::vector<double> value(vectors.size(), 0);
  // Of each vector: the useful replica taken last.
  std::vector<int32_t> taken(vectors.size(), -1);
  size_t best = 0;
  for (size_t v = 1; v < vectors.size(); ++v) {
    for (size_t u = 0; u < useful.size(); ++u) {
      if (!useful[u].fits(vectors[v])) continue;
      const double with = useful[u].replica.rate + value[vectors.minus(v, useful[u].index)];
      if (with > value[v] * (1 + 1e-12)) {
        value[v] = with;
        taken[v] = static_cast<int32_t>(u);
      }
    }
    // A replica of all these stages is of use only if it beats what parts of them do.
    if (auto replica = best_replica(problem, vectors[v], value[v])) {
      value[v] = replica->rate;
      taken[v] = static_cast<int32_t>(useful.size());
      useful.push_back(make_useful(v, std::move(*replica)));
    }
    if (value[v] > value[best] * (1 + 1e-12)) best = v;
  }
  SearchResult result;
  result.value = result.bound = value[best];
  result.exact = true;
  std::vector<int32_t> chosen;
  for (size_t v = best; taken[v] >= 0;) {
    chosen.push_back(taken[v]);
    v = vectors.minus(v, useful[static_cast<size_t>(taken[v])].index);
  }
  collect(useful, chosen, result);
  return result;
}

SearchResult exact_latency(const SearchProblem& problem, const CountVectors& vectors) {
  SearchResult result;
  result.value = std::numeric_limits<double>::infinity();
  for (size_t v = 1; v < vectors.size(); ++v) {
    if (auto replica = quickest_replica(problem, vectors[v], result.value)) {
      result.value = replica->request_s;
      result.replicas = {{std::move(*replica), 1}};
    }
  }
  if (result.replicas.empty()) result.value = 0;
  result.bound = result.value;
  result.exact = true;
  return result;
}

}  // namespace trireme
