// SPDX-License-Identifier: Apache-2.0
// What the cost model says of any placement, whoever made it.
#include <algorithm>
#include <cmath>
#include <deque>
#include <map>

#include "topology/cost.h"
#include "topology/host_group.h"
#include "topology/link_graph.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "topology/stage_types.h"
#include "topology/step_model.h"

namespace trireme {
namespace {

struct Context {
  const Topology& topology;
  const ModelSpec& spec;
  const PlacementOptions& options;
  LinkGraph links;
  ModelCost model;
  std::map<int32_t, int> workers;

  Context(const Topology& t, const ModelSpec& m, const PlacementOptions& o)
      : topology(t),
        spec(m),
        options(o),
        links(t),
        model(model_cost(m, o.dtype, o.assumptions, o.weight_dtypes)) {
    for (int worker = 0; worker < t.ranks_size(); ++worker)
      workers[t.ranks(worker).rank()] = worker;
  }

  int worker(const StageSpec& stage, int tp_rank) const {
    return workers.at(stage.shards(std::min(tp_rank, stage.shards_size() - 1)).rank());
  }
};

std::vector<int> workers_of(const Context& context, const StageSpec& stage) {
  std::vector<int> workers;
  for (int i = 0; i < stage.shards_size(); ++i) workers.push_back(context.worker(stage, i));
  return workers;
}

// Whether the workers' own collectives join these.
bool are_cpus(const Topology& topology, const std::vector<int>& workers) {
  return std::all_of(workers.begin(), workers.end(), [&](int worker) {
    return topology.ranks(worker).device().kind() == DEVICE_KIND_CPU;
  });
}

// A ring over the worst link between neighbours.
AllReduceRow ring_row(const Context& context, const std::vector<int>& workers) {
  const LinkSpeed* worst = nullptr;
  for (size_t i = 1; i < workers.size(); ++i) {
    const LinkSpeed& link = context.links.between(workers[i - 1], workers[i]);
    if (worst == nullptr || link.bandwidth_bytes_per_s() < worst->bandwidth_bytes_per_s()) {
      worst = &link;
    }
  }
  AllReduceRow row;
  row.set_tp(static_cast<int32_t>(workers.size()));
  row.set_alpha_s(2 * double(workers.size() - 1) * worst->latency_s());
  row.set_bus_bytes_per_s(worst->bandwidth_bytes_per_s());
  return row;
}

// The slowest device of the group, its largest shares, and the table of its island. For ranks of
// several islands `across` is filled.
StageCost cost_of(const Context& context, const StageSpec& stage, AllReduceTable& across) {
  StageCost cost;
  cost.tp = stage.shards_size();
  cost.share = {0, 0, 0, 0};
  double slowest = -1;
  const std::vector<int> workers = workers_of(context, stage);
  for (int i = 0; i < cost.tp; ++i) {
    const DeviceInfo& info = context.topology.ranks(workers[static_cast<size_t>(i)]).device();
    const DeviceCost device = device_cost(info);
    const double slowness = 1 / (device.em * device.bandwidth) + 100 / (device.ec * device.flops);
    if (slowness > slowest) {
      slowest = slowness;
      cost.device = device;
    }
    const ShardShare share = share_of(context.spec, stage.shards(i));
    cost.share.weights = std::max(cost.share.weights, share.weights);
    cost.share.kv = std::max(cost.share.kv, share.kv);
    cost.share.heads = std::max(cost.share.heads, share.heads);
    cost.share.vocab = std::max(cost.share.vocab, share.vocab);
  }
  if (cost.tp == 1) return cost;
  cost.all_reduce = table_of_group(context.topology, context.links, workers);
  if (cost.all_reduce == nullptr || cost.all_reduce->rows().rbegin()->tp() < cost.tp) {
    *across.add_rows() = are_cpus(context.topology, workers)
                             ? all_reduce_row(host_group(context.topology, context.links, workers))
                             : ring_row(context, workers);
    cost.all_reduce = &across;
  }
  return cost;
}

struct StageTimes {
  double request_s = 0, step_s = 0, chunk_s = 0;
};

// Of a group over several hosts: the sum of the embedding's rows, the way of the head's columns to
// the first rank. Within a host both are next to nothing.
double edges_s(const Context& context, const StageSpec& stage, const AllReduceTable& across,
               double rows) {
  const std::vector<int> workers = workers_of(context, stage);
  if (across.rows().empty() || !are_cpus(context.topology, workers)) return 0;
  double seconds = 0;
  if (stage.has_embedding()) {
    const double element = context.options.assumptions.all_reduce_element_bytes;
    seconds += all_reduce_s(across, stage.shards_size(), rows * context.model.hidden * element);
  }
  if (stage.has_head()) {
    const HostGroup group = host_group(context.topology, context.links, workers);
    seconds += gather_s(group, rows * context.model.vocab / group.size * sizeof(float));
  }
  return seconds;
}

StageTimes predict_stage(const Context& context, StageSpec& stage, double batch, double chunks) {
  AllReduceTable across;
  const StageCost cost = cost_of(context, stage, across);
  const CostAssumptions& assumptions = context.options.assumptions;
  const double prompt = context.options.load.prompt_tokens;
  const double output = context.options.load.output_tokens;
  const double layers = length(stage.layers());
  const double chunk =
      assumptions.detailed ? std::min(prompt, assumptions.chunk_tokens) : assumptions.chunk_tokens;
  const double chunk_layer =
      prefill_layer_s(context.model, cost, assumptions, chunk, (prompt - chunk) / 2);
  const double prompt_s = prompt * chunk_layer / chunk;
  StageTimes times;
  times.chunk_s = layers * (assumptions.detailed ? prompt_s / chunks : chunk_layer);
  const double layer = decode_layer_s(context.model, cost, assumptions, batch, prompt + output / 2);
  const double head = stage.has_head() ? head_s(context.model, cost, batch) : 0;
  times.step_s = layers * layer + head + edges_s(context, stage, across, batch);
  times.request_s = layers * prompt_s + output * times.step_s / batch;
  StagePrediction& predicted = *stage.mutable_predicted();
  predicted.set_decode_ms(1e3 * times.step_s);
  predicted.set_prefill_ms(1e3 * times.chunk_s);
  predicted.set_head_ms(1e3 * head);
  if (cost.tp > 1) {
    const double bytes = batch * context.model.hidden * assumptions.all_reduce_element_bytes;
    predicted.set_all_reduce_ms(1e3 * layers * 2 * all_reduce_s(*cost.all_reduce, cost.tp, bytes));
  }
  return times;
}

// Between stages of equal degree every rank sends to the one that has its place; else the first to
// the first, which tells its group (worker/stage.cc).
double hop_between(const Context& context, const StageSpec& stage, const StageSpec& next,
                   double bytes) {
  const bool equal = stage.shards_size() == next.shards_size();
  double seconds = 0;
  for (int i = 0; i < (equal ? stage.shards_size() : 1); ++i) {
    const LinkSpeed& link =
        context.links.between(context.worker(stage, i), context.worker(next, i));
    seconds = std::max(seconds, hop_s(link.latency_s(), link.bandwidth_bytes_per_s(), bytes));
  }
  const std::vector<int> workers = workers_of(context, next);
  if (equal || workers.size() == 1 || !are_cpus(context.topology, workers) ||
      table_of_group(context.topology, context.links, workers) != nullptr) {
    return seconds;
  }
  return seconds + gather_s(host_group(context.topology, context.links, workers), bytes);
}

// Hops of a replica into its stages; the sums of a decode step's and of a chunk's, and the busiest
// link's seconds per request.
struct HopTimes {
  double step_s = 0, chunk_s = 0, request_s = 0;
};

HopTimes predict_hops(const Context& context, ReplicaSpec& replica, int32_t batch, double chunk) {
  HopTimes times;
  const double row = context.model.hidden * context.options.assumptions.hop_element_bytes;
  const int count = replica.stages_size();
  for (int i = 0; i < count && count > 1; ++i) {
    const bool back = i + 1 == count;
    StageSpec& stage = *replica.mutable_stages(i);
    const StageSpec& next = replica.stages(back ? 0 : i + 1);
    const LinkSpeed& link =
        context.links.between(context.worker(stage, 0), context.worker(next, 0));
    // Only the ids go back to the first stage.
    const double step = back ? hop_s(link.latency_s(), link.bandwidth_bytes_per_s(), batch * 4.0)
                             : hop_between(context, stage, next, batch * row);
    stage.mutable_predicted()->set_hop_ms(1e3 * step);
    times.step_s += step;
    if (back) continue;
    const double prefill = hop_between(context, stage, next, chunk * row);
    stage.mutable_predicted()->set_prefill_hop_ms(1e3 * prefill);
    times.chunk_s += prefill;
    times.request_s = std::max(times.request_s, request_hop_s(link, context.options, row, batch));
  }
  return times;
}

void predict_replica(const Context& context, const Placement& placement, ReplicaSpec& replica) {
  const Load& load = context.options.load;
  const bool latency = context.options.objective == OBJECTIVE_LATENCY;
  const int32_t stages = replica.stages_size();
  const int32_t micro_batches = replica.micro_batches() > 0 ? replica.micro_batches() : stages;
  const int32_t batch = latency ? 1
                        : replica.sequences_per_micro_batch() > 0
                            ? replica.sequences_per_micro_batch()
                            : std::max(1, placement.max_sequences() / micro_batches);
  replica.set_micro_batches(micro_batches);
  replica.set_sequences_per_micro_batch(batch);
  const double chunks =
      std::max(1.0, std::ceil(load.prompt_tokens / context.options.assumptions.chunk_tokens));
  double request = 0, step = 0, slowest_step = 0, chunk = 0, slowest_chunk = 0;
  for (StageSpec& stage : *replica.mutable_stages()) {
    const StageTimes times = predict_stage(context, stage, batch, chunks);
    request = std::max(request, times.request_s);
    step += times.step_s;
    slowest_step = std::max(slowest_step, times.step_s);
    chunk += times.chunk_s;
    slowest_chunk = std::max(slowest_chunk, times.chunk_s);
  }
  const HopTimes hop = predict_hops(context, replica, batch, load.prompt_tokens / chunks);
  request = std::max(request, hop.request_s);
  for (StageSpec& stage : *replica.mutable_stages()) {
    stage.mutable_predicted()->set_idle_share(1 -
                                              stage.predicted().decode_ms() / (1e3 * slowest_step));
  }
  const double round = std::max(micro_batches * slowest_step, step + hop.step_s);
  ReplicaPrediction& predicted = *replica.mutable_predicted();
  predicted.set_ttft_ms(1e3 * (chunk + hop.chunk_s + (chunks - 1) * slowest_chunk));
  predicted.set_bubble_share(1 - micro_batches * step / (stages * round));
  if (latency) {
    predicted.set_tpot_ms(1e3 * (step + hop.step_s));
    predicted.set_tokens_per_s(1 / (step + hop.step_s));
    predicted.set_requests_per_s(predicted.tokens_per_s() / load.output_tokens);
    return;
  }
  // Prompts of other requests pass between two tokens: Little's law over the whole request.
  predicted.set_requests_per_s(1 / request);
  predicted.set_tokens_per_s(load.output_tokens / request);
  predicted.set_tpot_ms(
      1e3 * std::max(round, double(micro_batches) * batch * request / load.output_tokens));
}

}  // namespace

struct StepModel::State {
  PlacementOptions options;
  Context context;
  std::deque<AllReduceTable> across;          // of groups that no table knows
  std::vector<std::vector<StageCost>> costs;  // by replica and stage

  State(const Topology& topology, const ModelSpec& model, const PlacementOptions& wanted)
      : options(wanted), context(topology, model, options) {}
};

StepModel::StepModel(const Topology& topology, const ModelSpec& model, const Placement& placement) {
  PlacementOptions options;
  options.dtype = parse_dtype(placement.dtype()).value_or(options.dtype);
  if (placement.has_weight_dtypes()) options.weight_dtypes = placement.weight_dtypes();
  options.assumptions = assumptions_of(topology);
  state_ = std::make_unique<State>(topology, model, options);
  for (const ReplicaSpec& replica : placement.replicas()) {
    std::vector<StageCost>& costs = state_->costs.emplace_back();
    for (const StageSpec& stage : replica.stages()) {
      costs.push_back(cost_of(state_->context, stage, state_->across.emplace_back()));
    }
  }
}

StepModel::~StepModel() = default;

StepTime StepModel::predict(int replica, int stage, const StageSpec& spec, const StepWork& work,
                            double sampled) const {
  const StageCost& cost = state_->costs[static_cast<size_t>(replica)][static_cast<size_t>(stage)];
  const CostAssumptions& assumptions = state_->options.assumptions;
  const double layers = length(spec.layers());
  StepTime time;
  time.exchange_s = layers * all_reduces_s(state_->context.model, cost, assumptions, work.tokens);
  time.compute_s =
      layers * layer_s(state_->context.model, cost, assumptions, work) - time.exchange_s;
  if (spec.has_head() && sampled > 0)
    time.compute_s += head_s(state_->context.model, cost, sampled);
  return time;
}

const std::string& StepModel::device_type(int replica, int stage) const {
  return state_->costs[static_cast<size_t>(replica)][static_cast<size_t>(stage)].device.type;
}

void predict_times(const Topology& topology, const ModelSpec& model,
                   const PlacementOptions& options, Placement& placement) {
  const Context context(topology, model, options);
  PlacementPrediction& predicted = *placement.mutable_predicted();
  predicted.set_objective(options.objective);
  predicted.set_prompt_tokens(options.load.prompt_tokens);
  predicted.set_output_tokens(options.load.output_tokens);
  predicted.set_tpot_limit_ms(1e3 * options.tpot_limit_s.value_or(0));
  predicted.set_ttft_limit_ms(1e3 * options.ttft_limit_s.value_or(0));
  double requests = 0, tokens = 0, tpot = 0, ttft = 0;
  for (ReplicaSpec& replica : *placement.mutable_replicas()) {
    predict_replica(context, placement, replica);
    requests += replica.predicted().requests_per_s();
    tokens += replica.predicted().tokens_per_s();
    tpot = std::max(tpot, replica.predicted().tpot_ms());
    ttft = std::max(ttft, replica.predicted().ttft_ms());
  }
  predicted.set_requests_per_s(requests);
  predicted.set_tokens_per_s(tokens);
  predicted.set_tpot_ms(tpot);
  predicted.set_ttft_ms(ttft);
  predicted.set_value(options.objective == OBJECTIVE_LATENCY ? tpot : requests);
}

}  // namespace trireme
