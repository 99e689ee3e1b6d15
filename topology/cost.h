// SPDX-License-Identifier: Apache-2.0
// The performance model: seconds and bytes of one layer on one stage, hops and all-reduces. Pure
// functions of numbers; the planner tabulates them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/dtype.h"
#include "proto/cluster.pb.h"
#include "topology/devices.h"

namespace trireme {

// The load that throughput is predicted for.
struct Load {
  int32_t prompt_tokens = 1024;
  int32_t output_tokens = 256;
};

// What the model assumes beside the device table. The defaults predict our own worker; the tests
// set them as the published reference numbers have them.
struct CostAssumptions {
  double chunk_tokens = 2048;    // of a prompt, per step
  double element_bytes = 2;      // of weights, KV and activations where `exact_bytes` is not set
  double hop_element_bytes = 2;  // of a row that goes to the next stage
  double all_reduce_element_bytes = 2;
  bool detailed = true;        // attention of prompts, element-wise work that grows with the batch
  bool exact_bytes = true;     // bytes as shard.h counts them, embedding and buffers included
  double usable_share = 0.92;  // of a GPU's memory
  double gpu_reserve_bytes = 2e9;
  double latency_kv_sequences = 1;  // KV reserved on each stage for the latency objective
  double latency_head_share = 0;    // of the head's bytes reserved on every stage for it
};

// Of our own worker on these ranks.
CostAssumptions assumptions_of(const Topology& topology);

// A model, as the cost model sees it: layers alike.
struct ModelCost {
  int32_t layers = 0;
  double hidden = 0, vocab = 0, ffn = 0;
  double layer_parameters = 0;  // of the matrices of one layer
  double layer_bytes = 0;       // that one token reads of them
  double kv_bytes = 0;          // of one token in one layer
  double head_parameters = 0, head_bytes = 0;
};

// types: of single matrices; without them, and for the cache, `dtype`.
ModelCost model_cost(const ModelSpec& model, DType dtype, const CostAssumptions& assumptions,
                     const std::optional<WeightDtypes>& types = std::nullopt);

// The largest share of one rank of a group, by matrix: with unequal shards the group waits for it.
struct ShardShare {
  double weights = 1, kv = 1, heads = 1, vocab = 1;
};

ShardShare share_of(const ModelSpec& model, const ShardSpec& shard);
// The most of any rank of an even cut. Throws kInvalidArgument if the model cannot be cut so.
ShardShare shard_share(const ModelSpec& model, int32_t tp);

// Seconds of one all-reduce of `bytes` among tp ranks. Between samples a straight line in
// logarithms; beyond them, and without samples, alpha and bus. Degrees between two rows are
// interpolated. Infinite for a degree beyond the table.
double all_reduce_s(const AllReduceTable& table, int32_t tp, double bytes);

// A stage's share of the work: one group of tp devices.
struct StageCost {
  DeviceCost device;
  int32_t tp = 1;
  ShardShare share;
  const AllReduceTable* all_reduce = nullptr;  // null with tp = 1
};

// The matrices of one layer for n tokens.
double matrices_s(const ModelCost& model, const StageCost& stage, double tokens);
// What one micro-batch brings, whatever mixture of decodes and prompts it is.
struct StepWork {
  double tokens = 0;
  double cached = 0;  // positions that its decoding sequences read, summed over them
  double pairs = 0;   // of its prompts: a token and a position before it
};
// The two all-reduces of one layer; 0 without a group.
double all_reduces_s(const ModelCost& model, const StageCost& stage,
                     const CostAssumptions& assumptions, double tokens);
// One layer, its all-reduces included.
double layer_s(const ModelCost& model, const StageCost& stage, const CostAssumptions& assumptions,
               const StepWork& work);
// One layer, one decode step of `sequences`, each with `positions` in its cache.
double decode_layer_s(const ModelCost& model, const StageCost& stage,
                      const CostAssumptions& assumptions, double sequences, double positions);
// One layer, `tokens` of a prompt of which `before` are in the cache already.
double prefill_layer_s(const ModelCost& model, const StageCost& stage,
                       const CostAssumptions& assumptions, double tokens, double before);
// The head, for `sequences` rows.
double head_s(const ModelCost& model, const StageCost& stage, double sequences);

// Of `bytes` over a link; and the part of it for which the link can do nothing else.
double hop_s(double latency_s, double bandwidth, double bytes);
double hop_occupancy_s(double latency_s, double bandwidth, double bytes);

}  // namespace trireme
