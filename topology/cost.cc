// SPDX-License-Identifier: Apache-2.0
#include "topology/cost.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/sizes.h"
#include "topology/shard.h"

namespace trireme {
namespace {

// The rest of a latency is spent in software on both sides, while other messages travel.
constexpr double kLatencyOnTheWire = 0.3;
// More than that of a latency is distance, which other messages travel at the same time.
constexpr double kMostOnTheWire = 100e-6;

double smooth(double a, double b, double p) {
  const double high = std::max(a, b);
  if (high <= 0) return 0;
  return high * std::pow(1 + std::pow(std::min(a, b) / high, p), 1 / p);
}

double element_bytes(const std::string& type) {
  const DType dtype = parse_dtype(type).value();
  if (!is_quantised(dtype)) return static_cast<double>(element_size(dtype));
  return (dtype == DType::kI4 ? 0.5 : 1) + 2.0 / kQuantGroup;  // and its share of a scale
}

// Of the matrices of a layer, in the mean of all.
double mean_layer_bytes(const ModelSpec& model, const WeightDtypes& types) {
  const double hidden = model.hidden_size();
  const double q = double(model.num_heads()) * model.head_dim();
  const double kv = double(model.num_kv_heads()) * model.head_dim();
  double bytes = 0;
  for (const LayerDtypes& layer : types.layers()) {
    bytes += hidden *
             ((q + 2 * kv) * element_bytes(layer.qkv()) + q * element_bytes(layer.attention_out()) +
              2.0 * model.ffn_size() * element_bytes(layer.gate_up()) +
              double(model.ffn_size()) * element_bytes(layer.down()));
  }
  return bytes / std::max(1, types.layers_size());
}

double alpha_beta(const AllReduceRow& row, double bytes) {
  return row.alpha_s() + bytes * 2 * (row.tp() - 1) / row.tp() / row.bus_bytes_per_s();
}

double row_s(const AllReduceRow& row, double bytes) {
  const auto& samples = row.samples();
  if (samples.empty()) return alpha_beta(row, bytes);
  const auto after = std::lower_bound(samples.begin(), samples.end(), bytes,
                                      [](const AllReduceSample& sample, double b) {
                                        return static_cast<double>(sample.bytes()) < b;
                                      });
  if (after == samples.begin()) return after->seconds();
  const AllReduceSample& low = *(after - 1);
  if (after == samples.end()) {
    return low.seconds() + alpha_beta(row, bytes) -
           alpha_beta(row, static_cast<double>(low.bytes()));
  }
  const double share =
      std::log(bytes / static_cast<double>(low.bytes())) /
      std::log(static_cast<double>(after->bytes()) / static_cast<double>(low.bytes()));
  return low.seconds() * std::pow(after->seconds() / low.seconds(), share);
}

}  // namespace

CostAssumptions assumptions_of(const Topology& topology) {
  CostAssumptions assumptions;
  const auto& ranks = topology.ranks();
  if (std::all_of(ranks.begin(), ranks.end(), [](const RankInfo& rank) {
        return rank.device().kind() == DEVICE_KIND_CPU;
      })) {  // which pass and add rows in fp32
    assumptions.hop_element_bytes = assumptions.all_reduce_element_bytes = 4;
  }
  return assumptions;
}

ModelCost model_cost(const ModelSpec& model, DType dtype, const CostAssumptions& assumptions,
                     const std::optional<WeightDtypes>& types) {
  const double element = assumptions.exact_bytes ? static_cast<double>(element_size(dtype))
                                                 : assumptions.element_bytes;
  ModelCost cost;
  cost.layers = model.num_layers();
  cost.hidden = model.hidden_size();
  cost.vocab = model.vocab_size();
  cost.ffn = model.ffn_size();
  const double q = double(model.num_heads()) * model.head_dim();
  const double kv = double(model.num_kv_heads()) * model.head_dim();
  cost.layer_parameters = cost.hidden * (2 * q + 2 * kv + 3 * cost.ffn);
  cost.layer_bytes = cost.layer_parameters * element;
  cost.kv_bytes = 2 * kv * element;
  cost.head_parameters = cost.hidden * cost.vocab;
  cost.head_bytes = cost.head_parameters * element;
  if (assumptions.exact_bytes && types) {
    cost.layer_bytes = mean_layer_bytes(model, *types);
    cost.head_bytes = cost.head_parameters * element_bytes(types->head());
  }
  return cost;
}

ShardShare share_of(const ModelSpec& model, const ShardSpec& shard) {
  const auto matrices = [&](double heads, double kv_heads, double ffn) {
    return model.head_dim() * (2 * heads + 2 * kv_heads) + 3 * ffn;
  };
  const double heads = length(shard.heads());
  const double kv_heads = length(shard.kv_heads());
  return {matrices(heads, kv_heads, length(shard.ffn())) /
              matrices(model.num_heads(), model.num_kv_heads(), model.ffn_size()),
          kv_heads / model.num_kv_heads(), heads / model.num_heads(),
          double(length(shard.vocab())) / model.vocab_size()};
}

ShardShare shard_share(const ModelSpec& model, int32_t tp) {
  ShardShare most{0, 0, 0, 0};
  for (int32_t rank = 0; rank < tp; ++rank) {
    const ShardShare share = share_of(model, make_shard(model, rank, tp));
    most.weights = std::max(most.weights, share.weights);
    most.kv = std::max(most.kv, share.kv);
    most.heads = std::max(most.heads, share.heads);
    most.vocab = std::max(most.vocab, share.vocab);
  }
  return most;
}

double all_reduce_s(const AllReduceTable& table, int32_t tp, double bytes) {
  if (tp <= 1) return 0;
  const auto& rows = table.rows();
  const auto after = std::find_if(rows.begin(), rows.end(),
                                  [&](const AllReduceRow& row) { return row.tp() >= tp; });
  if (after == rows.end()) return std::numeric_limits<double>::infinity();
  if (after->tp() == tp || after == rows.begin()) return row_s(*after, bytes);
  const AllReduceRow& low = *(after - 1);
  const double share = std::log2(double(tp) / low.tp()) / std::log2(double(after->tp()) / low.tp());
  return row_s(low, bytes) * (1 - share) + row_s(*after, bytes) * share;
}

double matrices_s(const ModelCost& model, const StageCost& stage, double tokens) {
  const DeviceCost& device = stage.device;
  const double memory = model.layer_bytes * stage.share.weights / (device.em * device.bandwidth);
  const double compute =
      2 * model.layer_parameters * stage.share.weights * tokens / (device.ec * device.flops);
  return device.launch_s + smooth(memory, compute, device.p);
}

double all_reduces_s(const ModelCost& model, const StageCost& stage,
                     const CostAssumptions& assumptions, double tokens) {
  if (stage.tp == 1 || stage.all_reduce == nullptr) return 0;
  return 2 * all_reduce_s(*stage.all_reduce, stage.tp,
                          tokens * model.hidden * assumptions.all_reduce_element_bytes);
}

namespace {

// Norms, rotations, activations and residuals: bytes that pass through memory for each token.
double elementwise_s(const ModelCost& model, const StageCost& stage,
                     const CostAssumptions& assumptions, double tokens) {
  if (!assumptions.detailed) return 0;
  const double elements = 18 * model.hidden + 3 * model.ffn * stage.share.weights;
  return tokens * elements * assumptions.element_bytes / stage.device.bandwidth;
}

}  // namespace

double layer_s(const ModelCost& model, const StageCost& stage, const CostAssumptions& assumptions,
               const StepWork& work) {
  const DeviceCost& device = stage.device;
  const double reading =
      work.cached * model.kv_bytes * stage.share.kv / (device.ea * device.bandwidth);
  const double computing = assumptions.detailed ? 4 * work.pairs * model.hidden *
                                                      stage.share.heads / (device.ec * device.flops)
                                                : 0;
  const double rest = work.pairs > 0 ? device.prefill_layer_s : device.decode_layer_s;
  return matrices_s(model, stage, work.tokens) + (reading + computing) + rest +
         elementwise_s(model, stage, assumptions, work.tokens) +
         all_reduces_s(model, stage, assumptions, work.tokens);
}

double decode_layer_s(const ModelCost& model, const StageCost& stage,
                      const CostAssumptions& assumptions, double sequences, double positions) {
  return layer_s(model, stage, assumptions, {sequences, sequences * positions, 0});
}

double prefill_layer_s(const ModelCost& model, const StageCost& stage,
                       const CostAssumptions& assumptions, double tokens, double before) {
  return layer_s(model, stage, assumptions, {tokens, 0, tokens * (before + tokens / 2)});
}

double head_s(const ModelCost& model, const StageCost& stage, double sequences) {
  const DeviceCost& device = stage.device;
  return model.head_bytes * stage.share.vocab / (device.em * device.bandwidth) +
         2 * model.head_parameters * stage.share.vocab * sequences / (device.ec * device.flops);
}

double hop_s(double latency_s, double bandwidth, double bytes) {
  return latency_s + bytes / bandwidth;
}

double hop_occupancy_s(double latency_s, double bandwidth, double bytes) {
  return std::min(kLatencyOnTheWire * latency_s, kMostOnTheWire) + bytes / bandwidth;
}

}  // namespace trireme
