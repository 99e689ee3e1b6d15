// SPDX-License-Identifier: Apache-2.0
#include "topology/stage_types.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "topology/shard.h"

namespace trireme {
namespace {

constexpr int32_t kLargestTp = 8;  // by default; tables with more rows allow powers of two
constexpr int32_t kBatchGrid[] = {1,  2,  3,  4,  6,  8,   12,  16,  20,  24, 32,
                                  40, 48, 64, 80, 96, 128, 160, 192, 224, 256};

// What CPU ranks of one node reach through its memory, where nothing was measured.
AllReduceTable assumed_table(DeviceKind kind) {
  AllReduceTable table;
  for (const int32_t tp : {2, 4, 8, 16}) {
    AllReduceRow& row = *table.add_rows();
    row.set_tp(tp);
    row.set_alpha_s(kind == DEVICE_KIND_CPU ? 10e-6 * tp : 8e-6 * tp);
    row.set_bus_bytes_per_s(kind == DEVICE_KIND_CPU ? 3e9 : 10e9 / tp);
  }
  return table;
}

// Speeds and memories within a few per cent are one class: measurements of equal devices differ.
int64_t bucket(double value, double step) {
  return value <= 0 ? 0 : std::llround(std::log(value) / std::log(1 + step));
}

using ClassKey = std::vector<int64_t>;

ClassKey device_class(const Topology& topology, int worker, const PlacementOptions& options) {
  const DeviceInfo& device = topology.ranks(worker).device();
  const DeviceCost cost = device_cost(device);
  const double step = device.speed_measured() ? 0.05 : 1e-6;
  return {device.kind(),
          bucket(cost.em * cost.bandwidth, step),
          bucket(cost.ea * cost.bandwidth, step),
          bucket(cost.ec * cost.flops, step),
          bucket(cost.launch_s, 0.2),
          bucket(cost.p, 0.05),
          bucket(cost.decode_layer_s, 0.2),
          bucket(cost.prefill_layer_s, 0.2),
          device.degraded() ? 1 : 0,
          bucket(static_cast<double>(memory_of(topology, worker, options)), 0.05)};
}

// Devices that may form groups: an island's, or, where no island is known, a node's.
struct Neighbours {
  std::vector<int> workers;
  const AllReduceTable* table = nullptr;
};

const AllReduceTable* find_table(const Topology& topology, const std::string& name) {
  for (const AllReduceTable& table : topology.all_reduce_tables()) {
    if (table.name() == name) return &table;
  }
  return nullptr;
}

const AllReduceTable& assumed(DeviceKind kind) {
  static const AllReduceTable kCpuTable = assumed_table(DEVICE_KIND_CPU);
  static const AllReduceTable kGpuTable = assumed_table(DEVICE_KIND_CUDA);
  return kind == DEVICE_KIND_CUDA ? kGpuTable : kCpuTable;
}

std::vector<Neighbours> neighbourhoods(const Topology& topology, const LinkGraph& links) {
  std::vector<Neighbours> result;
  std::map<int32_t, int> workers;
  std::map<std::pair<std::string, int>, Neighbours> nodes;
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    workers[topology.ranks(worker).rank()] = worker;
    if (links.island_of(worker) >= 0) continue;
    if (topology.islands_size() > 0) {
      result.push_back({{worker}, nullptr});
      continue;
    }
    const RankInfo& rank = topology.ranks(worker);
    Neighbours& node = nodes[{rank.host(), rank.device().kind()}];
    node.workers.push_back(worker);
    node.table = &assumed(rank.device().kind());
  }
  for (const Island& island : topology.islands()) {
    Neighbours entry;
    for (const int32_t rank : island.ranks()) entry.workers.push_back(workers.at(rank));
    entry.table = find_table(topology, island.all_reduce_table());
    result.push_back(std::move(entry));
  }
  for (auto& [key, node] : nodes) result.push_back(std::move(node));
  std::sort(result.begin(), result.end(),
            [](const Neighbours& a, const Neighbours& b) { return a.workers < b.workers; });
  return result;
}

bool degree_allowed(const ModelSpec& model, const PlacementOptions& options,
                    const AllReduceTable* table, int32_t tp) {
  if (options.tp && tp != *options.tp) return false;
  if (!options.tp_degrees.empty() && std::find(options.tp_degrees.begin(), options.tp_degrees.end(),
                                               tp) == options.tp_degrees.end()) {
    return false;
  }
  if (tp > model.num_heads()) return false;
  if (tp == 1) return true;
  if (table == nullptr || table->rows().empty() || table->rows().rbegin()->tp() < tp) return false;
  if (options.tp || tp <= kLargestTp) return true;
  return (tp & (tp - 1)) == 0;
}

// Fills the bytes of a stage type as shard.h counts them on devices of this kind: the most of any
// rank of the group.
void fill_exact_bytes(const ModelSpec& model, const PlacementOptions& options, DeviceKind kind,
                      StageType& type) {
  Placement placement;
  placement.set_dtype(dtype_name(options.dtype));
  if (options.weight_dtypes) *placement.mutable_weight_dtypes() = *options.weight_dtypes;
  placement.set_block_size(options.block_size);
  placement.set_num_blocks(1);
  placement.set_max_sequences(options.max_sequences);
  placement.set_max_batch_tokens(options.max_batch_tokens);
  placement.set_context(options.context.value_or(model.context_length()));
  StageSpec layer, embedding, head, both, stack, last;
  layer.mutable_layers()->set_end(1);
  stack.mutable_layers()->set_end(options.weight_dtypes ? model.num_layers() : 1);
  last = stack;
  last.set_has_head(true);
  embedding.set_has_embedding(true);
  head.set_has_head(true);
  both.set_has_embedding(true);
  both.set_has_head(true);
  for (int32_t rank = 0; rank < type.tp; ++rank) {
    ShardSpec shard = make_shard(model, rank, type.tp);
    if (kind == DEVICE_KIND_CUDA) shard.set_device(kind);
    for (StageSpec* stage : {&stack, &last}) {
      stage->clear_shards();
      for (int32_t n = 0; n < type.tp; ++n) stage->add_shards()->set_device(shard.device());
      *stage->mutable_shards(rank) = shard;
    }
    const auto weights = [&](const StageSpec& stage) {
      return static_cast<double>(weight_bytes(model, stage, shard, placement));
    };
    const auto most = [](double& value, double other) { value = std::max(value, other); };
    // Layers may have types of their own: the heaviest counts.
    for (int32_t n = 0; n < (options.weight_dtypes ? model.num_layers() : 1); ++n) {
      layer.mutable_layers()->set_begin(n);
      layer.mutable_layers()->set_end(n + 1);
      most(type.layer_bytes, weights(layer));
    }
    most(type.embedding_bytes, weights(embedding));
    // The second of three stages of this degree: it stages messages both ways. Of any layers.
    const auto buffers_of = [&](const StageSpec& stage) {
      ReplicaSpec row;
      *row.add_stages() = stack;
      *row.add_stages() = stage;
      *row.add_stages() = stack;
      return static_cast<double>(activation_bytes(model, stage, shard, placement) +
                                 communication_bytes(model, row, 1, rank, placement));
    };
    const double buffers = buffers_of(stack);
    const double head_buffers = buffers_of(last) - buffers;
    most(type.head_bytes, weights(head) + head_buffers);
    most(type.head_and_embedding_bytes, weights(both) + head_buffers);
    most(type.fixed_bytes, buffers);
    most(type.kv_token_bytes,
         static_cast<double>(kv_bytes(model, layer, shard, placement)) / options.block_size);
  }
}

void fill_formula_bytes(const ModelCost& model, const StageCost& cost, StageType& type) {
  type.layer_bytes = model.layer_bytes * cost.share.weights;
  type.kv_token_bytes = model.kv_bytes * cost.share.kv;
  type.head_bytes = type.head_and_embedding_bytes = model.head_bytes * cost.share.vocab;
}

StageType make_type(const ModelSpec& spec, const ModelCost& model, const PlacementOptions& options,
                    const SearchProblem& problem, const StageCost& cost, DeviceKind kind,
                    double usable) {
  const CostAssumptions& assumptions = options.assumptions;
  StageType type;
  type.tp = cost.tp;
  type.usable_bytes = usable;
  if (assumptions.exact_bytes) {
    fill_exact_bytes(spec, options, kind, type);
  } else {
    fill_formula_bytes(model, cost, type);
  }
  const double prompt = options.load.prompt_tokens;
  const double output = options.load.output_tokens;
  // The mean chunk of a prompt has half of it before it.
  const double chunk =
      assumptions.detailed ? std::min(prompt, assumptions.chunk_tokens) : assumptions.chunk_tokens;
  type.chunk_s = prefill_layer_s(model, cost, assumptions, chunk, (prompt - chunk) / 2);
  const double prompt_s = prompt * type.chunk_s / chunk;
  if (assumptions.detailed) type.chunk_s = prompt_s / problem.chunks;
  for (const int32_t batch : problem.batches) {
    const double step = decode_layer_s(model, cost, assumptions, batch, prompt + output / 2);
    type.decode_s.push_back(step);
    const double bytes = batch * model.hidden * assumptions.all_reduce_element_bytes;
    type.all_reduce_step_s.push_back(
        cost.tp == 1 ? 0 : 2 * all_reduce_s(*cost.all_reduce, cost.tp, bytes));
    type.request_s.push_back(prompt_s + output * step / batch);
    type.head_step_s.push_back(head_s(model, cost, batch));
    type.head_request_s.push_back(output * type.head_step_s.back() / batch);
  }
  return type;
}

void fill_hops(const LinkGraph& links, const PlacementOptions& options, PlannerInput& input) {
  SearchProblem& problem = input.problem;
  const double row = input.model.hidden * options.assumptions.hop_element_bytes;
  const std::vector<const LinkSpeed*> all = links.all();
  problem.hop_request_s.assign(problem.batches.size(), 0);
  for (size_t b = 0; b < problem.batches.size(); ++b) {
    double least = all.empty() ? 0 : std::numeric_limits<double>::infinity();
    for (const LinkSpeed* link : all) {
      least = std::min(least, request_hop_s(*link, options, row, problem.batches[b]));
    }
    problem.hop_request_s[b] = least;
  }
  double least = all.empty() ? 0 : std::numeric_limits<double>::infinity();
  input.uniform_links = true;
  for (const LinkSpeed* link : all) {
    least = std::min(least, hop_s(link->latency_s(), link->bandwidth_bytes_per_s(), row));
    input.uniform_links = input.uniform_links && link->latency_s() == all.front()->latency_s() &&
                          link->bandwidth_bytes_per_s() == all.front()->bandwidth_bytes_per_s();
  }
  problem.hop_token_s = least;
}

void fill_limits(const ModelSpec& model, const PlacementOptions& options, SearchProblem& problem) {
  const double context = options.context.value_or(model.context_length());
  problem.layers = model.num_layers();
  problem.max_stages = std::min(model.num_layers(), 64);
  problem.output_tokens = options.load.output_tokens;
  const double positions = options.load.prompt_tokens + options.load.output_tokens;
  problem.kv_positions = positions;
  problem.latency_kv_positions = options.assumptions.latency_kv_sequences * positions;
  problem.latency_head_share = options.assumptions.latency_head_share;
  if (options.assumptions.exact_bytes) {
    const double block = options.block_size;
    problem.kv_positions = std::ceil(positions / block) * block;
    problem.least_kv_positions = std::ceil(context / block) * block;
    problem.latency_kv_positions =
        std::max(problem.latency_kv_positions, problem.least_kv_positions);
  }
  problem.chunks =
      std::max(1.0, std::ceil(options.load.prompt_tokens / options.assumptions.chunk_tokens));
  if (options.limit_sequences) problem.max_sequences = options.max_sequences;
  if (options.tpot_limit_s) problem.tpot_limit_s = *options.tpot_limit_s;
  if (options.ttft_limit_s) problem.ttft_limit_s = *options.ttft_limit_s;
  problem.batches = options.batches;
  if (problem.batches.empty()) {
    problem.batches.assign(std::begin(kBatchGrid), std::end(kBatchGrid));
  }
}

}  // namespace

double usable_memory(const Topology& topology, int worker, const PlacementOptions& options) {
  const auto bytes = static_cast<double>(memory_of(topology, worker, options));
  const CostAssumptions& assumptions = options.assumptions;
  if (topology.ranks(worker).device().kind() == DEVICE_KIND_CUDA || !assumptions.exact_bytes) {
    return bytes * assumptions.usable_share - assumptions.gpu_reserve_bytes;
  }
  const auto scratch = static_cast<double>(matmul_scratch_bytes());  // of each thread
  return bytes - static_cast<double>(kReservedBytes) -
         scratch * topology.ranks(worker).device().threads();
}

const AllReduceTable* table_of_group(const Topology& topology, const LinkGraph& links,
                                     const std::vector<int>& workers) {
  const int island = links.island_of(workers.front());
  for (const int worker : workers) {
    if (links.island_of(worker) != island) return nullptr;
    if (island < 0 && topology.ranks(worker).host() != topology.ranks(workers.front()).host()) {
      return nullptr;
    }
  }
  if (island < 0) return &assumed(topology.ranks(workers.front()).device().kind());
  const AllReduceTable* table = find_table(topology, topology.islands(island).all_reduce_table());
  return table == nullptr || table->rows().empty() ? nullptr : table;
}

double request_hop_s(const LinkSpeed& link, const PlacementOptions& options, double row_bytes,
                     int32_t batch) {
  const double bandwidth = link.bandwidth_bytes_per_s();
  return double(options.load.output_tokens) / batch *
             hop_occupancy_s(link.latency_s(), bandwidth, row_bytes * batch) +
         options.load.prompt_tokens * row_bytes / bandwidth;
}

PlannerInput make_problem(const Topology& topology, const LinkGraph& links, const ModelSpec& model,
                          const PlacementOptions& options, bool identified,
                          const std::vector<int>& regions) {
  PlannerInput input;
  SearchProblem& problem = input.problem;
  input.model = model_cost(model, options.dtype, options.assumptions, options.weight_dtypes);
  fill_limits(model, options, problem);
  using PoolKey = std::tuple<ClassKey, std::string, int>;
  std::map<PoolKey, int> pools;
  std::vector<const AllReduceTable*> tables;
  std::vector<double> usable;
  std::vector<DeviceKind> kinds;
  std::map<int32_t, ShardShare> shares;
  int own = 0;
  for (const Neighbours& near : neighbourhoods(topology, links)) {
    std::map<ClassKey, std::vector<int>> alike;
    for (const int worker : near.workers) {
      alike[device_class(topology, worker, options)].push_back(worker);
    }
    const int region = regions.empty() ? 0 : regions[static_cast<size_t>(near.workers.front())];
    for (auto& [key, workers] : alike) {
      const std::string table = near.table == nullptr ? "" : near.table->SerializeAsString();
      const auto [pool, fresh] =
          pools.emplace(PoolKey{key, table, identified ? own++ : region}, problem.pools.size());
      if (fresh) {
        problem.pools.emplace_back();
        tables.push_back(near.table);
        usable.push_back(std::numeric_limits<double>::infinity());
        kinds.push_back(topology.ranks(workers.front()).device().kind());
        input.pool_devices.push_back(device_cost(topology.ranks(workers.front()).device()));
      }
      const auto index = static_cast<size_t>(pool->second);
      auto& sizes = problem.pools[index].islands;
      const auto size = static_cast<int32_t>(workers.size());
      const auto at = std::find_if(sizes.begin(), sizes.end(),
                                   [&](const auto& entry) { return entry.first == size; });
      if (at == sizes.end()) {
        sizes.emplace_back(size, 1);
      } else {
        ++at->second;
      }
      for (const int worker : workers) {
        usable[index] = std::min(usable[index], usable_memory(topology, worker, options));
      }
      input.islands.push_back({pool->second, std::move(workers)});
    }
  }
  for (size_t index = 0; index < problem.pools.size(); ++index) {
    Pool& pool = problem.pools[index];
    std::sort(pool.islands.begin(), pool.islands.end());
    for (int32_t tp = 1; tp <= pool.islands.back().first; ++tp) {
      if (!degree_allowed(model, options, tables[index], tp)) continue;
      if (!shares.count(tp)) shares[tp] = shard_share(model, tp);
      const StageCost cost{input.pool_devices[index], tp, shares[tp], tables[index]};
      StageType type =
          make_type(model, input.model, options, problem, cost, kinds[index], usable[index]);
      type.pool = static_cast<int>(index);
      pool.types.push_back(static_cast<int>(problem.types.size()));
      problem.types.push_back(std::move(type));
    }
  }
  fill_hops(links, options, input);
  return input;
}

}  // namespace trireme
