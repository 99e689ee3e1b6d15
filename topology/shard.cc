// SPDX-License-Identifier: Apache-2.0
#include "topology/shard.h"

#include <algorithm>
#include <string>

#include "kernels/base/error.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

// The begin of part `index` when `total` units are cut into `parts` as evenly as can be.
int32_t cut(int32_t total, int32_t index, int32_t parts) {
  return static_cast<int32_t>(int64_t{total} * index / parts);
}

void set(Range* range, int32_t begin, int32_t end) {
  range->set_begin(begin);
  range->set_end(end);
}

void check_range(const Range& range, int32_t limit, const char* field, int32_t rank) {
  if (range.begin() < 0 || range.begin() > range.end() || range.end() > limit) {
    throw Error(Code::kInvalidArgument, "cannot use the placement: rank " + std::to_string(rank) +
                                            " has " + field + " [" + std::to_string(range.begin()) +
                                            ", " + std::to_string(range.end()) +
                                            "), the model has [0, " + std::to_string(limit) + ")");
  }
}

}  // namespace

ShardSpec make_shard(const ModelSpec& model, int32_t tp_rank, int32_t tp_degree) {
  if (tp_degree > model.num_heads()) {
    throw Error(Code::kInvalidArgument,
                "cannot split " + model.name() + " over " + std::to_string(tp_degree) +
                    " tensor-parallel ranks: it has " + std::to_string(model.num_heads()) +
                    " attention heads; use --tp " + std::to_string(model.num_heads()) + " or less");
  }
  ShardSpec shard;
  shard.set_tp_rank(tp_rank);
  const int32_t head_begin = cut(model.num_heads(), tp_rank, tp_degree);
  const int32_t head_end = cut(model.num_heads(), tp_rank + 1, tp_degree);
  set(shard.mutable_heads(), head_begin, head_end);
  const int32_t group = model.num_heads() / model.num_kv_heads();
  set(shard.mutable_kv_heads(), head_begin / group, (head_end + group - 1) / group);
  const int32_t units = model.ffn_size() / kFfnUnit;
  const bool last = tp_rank + 1 == tp_degree;
  set(shard.mutable_ffn(), cut(units, tp_rank, tp_degree) * kFfnUnit,
      last ? model.ffn_size() : cut(units, tp_rank + 1, tp_degree) * kFfnUnit);
  set(shard.mutable_vocab(), cut(model.vocab_size(), tp_rank, tp_degree),
      cut(model.vocab_size(), tp_rank + 1, tp_degree));
  return shard;
}

void validate_shard(const ModelSpec& model, const ShardSpec& shard) {
  check_range(shard.heads(), model.num_heads(), "heads", shard.rank());
  check_range(shard.kv_heads(), model.num_kv_heads(), "kv_heads", shard.rank());
  check_range(shard.ffn(), model.ffn_size(), "ffn", shard.rank());
  check_range(shard.vocab(), model.vocab_size(), "vocab", shard.rank());
  const int32_t group = model.num_heads() / model.num_kv_heads();
  if (length(shard.heads()) > 0 &&
      (shard.kv_heads().begin() > shard.heads().begin() / group ||
       shard.kv_heads().end() < (shard.heads().end() + group - 1) / group)) {
    throw Error(Code::kInvalidArgument, "cannot use the placement: rank " +
                                            std::to_string(shard.rank()) +
                                            " lacks KV heads that its query heads [" +
                                            std::to_string(shard.heads().begin()) + ", " +
                                            std::to_string(shard.heads().end()) + ") read");
  }
}

uint64_t weight_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                      const Placement& placement) {
  const int64_t hidden = model.hidden_size();
  const int64_t q = int64_t{length(shard.heads())} * model.head_dim();
  const int64_t kv = int64_t{length(shard.kv_heads())} * model.head_dim();
  const int64_t ffn = length(shard.ffn());
  const auto f32 = element_size(DType::kF32);
  int64_t vectors = 2 * hidden * f32;
  if (model.qkv_bias()) vectors += (q + 2 * kv) * f32;
  if (model.qk_norm()) vectors += 2 * model.head_dim() * f32;
  if (model.post_norms()) vectors += 2 * hidden * f32;
  // The first rank's part of a branch carries its bias.
  const int64_t branch_bias = shard.tp_rank() == 0 ? hidden * f32 : 0;
  if (model.attention_out_bias()) vectors += branch_bias;
  if (model.mlp_bias()) vectors += 2 * ffn * f32 + branch_bias;
  // As one block of the prefix's positions.
  const int64_t prefix = kv_layer_bytes(cache_dtype(placement), 1, length(shard.kv_heads()),
                                        model.prefix_length(), model.head_dim());
  int64_t total = (vectors + prefix) * length(stage.layers());
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    const auto type = [&](Matrix matrix) { return weight_dtype(placement, matrix, layer); };
    total += packed_weight_bytes(type(Matrix::kQkv), q + 2 * kv, hidden) +
             packed_weight_bytes(type(Matrix::kAttentionOut), hidden, q) +
             packed_weight_bytes(type(Matrix::kGateUp), 2 * ffn, hidden) +
             packed_weight_bytes(type(Matrix::kDown), hidden, ffn);
  }
  const auto table = [&](Matrix matrix) {
    return packed_weight_bytes(weight_dtype(placement, matrix), length(shard.vocab()), hidden);
  };
  const bool tied = model.tied_embeddings();
  if (stage.has_embedding() || (stage.has_head() && tied)) total += table(Matrix::kEmbedding);
  if (stage.has_head()) total += hidden * f32 + (tied ? 0 : table(Matrix::kHead));
  return static_cast<uint64_t>(total);
}

uint64_t kv_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                  const Placement& placement) {
  return static_cast<uint64_t>(length(stage.layers()) *
                               kv_layer_bytes(cache_dtype(placement), placement.num_blocks(),
                                              length(shard.kv_heads()), placement.block_size(),
                                              model.head_dim()));
}

uint64_t activation_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                          const Placement& placement) {
  const int64_t tokens = placement.max_batch_tokens();
  const int64_t sequences = placement.max_sequences();
  const int64_t hidden = model.hidden_size();
  const int64_t q = int64_t{length(shard.heads())} * model.head_dim();
  const int64_t kv = int64_t{length(shard.kv_heads())} * model.head_dim();
  const int64_t ffn = length(shard.ffn());
  const auto input = [&](std::initializer_list<Matrix> matrices) {
    return element_size(widest_input(placement, stage, matrices));
  };
  const auto f32 = element_size(DType::kF32);
  // residual and branch; normed input; qkv; attention out; gate|up; gated product
  int64_t bytes = tokens * (2 * hidden * f32 + hidden * input({Matrix::kQkv, Matrix::kGateUp}) +
                            (q + 2 * kv) * f32 + q * input({Matrix::kAttentionOut}) +
                            2 * ffn * f32 + ffn * input({Matrix::kDown}));
  // rotary tables; the micro-batch's indices
  const int64_t context = placement.context();
  const int64_t blocks = (context + placement.block_size() - 1) / placement.block_size();
  bytes += context * (model.rope().rotary_dim() + model.local_rope().rotary_dim()) * f32;
  bytes += (3 * tokens + 3 * sequences + 1 + sequences * blocks) * element_size(DType::kI32);
  if (stage.has_head()) {
    const auto e = element_size(activation_dtype(head_dtype(model, placement)));
    bytes += sequences * (hidden * (f32 + e) + length(shard.vocab()) * f32);
    // The first rank holds the gathered logits, and their copy on the host.
    const int copies = shard.tp_rank() > 0 ? 0 : stage.shards_size() > 1 ? 2 : 1;
    bytes += copies * sequences * model.vocab_size() * f32;
  }
  bytes += shard.threads() * cpu_scratch_bytes(heads_of_kv(model, shard), model.head_dim());
  return static_cast<uint64_t>(bytes);
}

int32_t heads_of_kv(const ModelSpec& model, const ShardSpec& shard) {
  const int32_t group = model.num_heads() / model.num_kv_heads();
  int32_t most = 1;
  for (int32_t kv = shard.kv_heads().begin(); kv < shard.kv_heads().end(); ++kv) {
    most = std::max(most, std::min(shard.heads().end(), (kv + 1) * group) -
                              std::max(shard.heads().begin(), kv * group));
  }
  return most;
}

StagingBytes group_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                           int tp_rank, const Placement& placement) {
  const StageSpec& own = replica.stages(stage);
  const int64_t ranks = own.shards_size();
  if (ranks == 1) return {};
  const int64_t values = int64_t{placement.max_batch_tokens()} * model.hidden_size();
  const auto f32 = int64_t{element_size(DType::kF32)};
  int64_t incoming = sum_incoming_bytes(values, ranks);
  int64_t outgoing = sum_outgoing_bytes(values);
  // The first rank has the activations of a stage of another degree, and tells its group.
  if (stage > 0 && replica.stages(stage - 1).shards_size() != ranks) {
    (tp_rank == 0 ? outgoing : incoming) =
        std::max(tp_rank == 0 ? outgoing : incoming, values * f32);
  }
  if (own.has_head()) {
    const int64_t sequences = placement.max_sequences();
    if (tp_rank == 0) incoming = std::max(incoming, sequences * model.vocab_size() * f32);
    if (tp_rank > 0) {
      outgoing = std::max(outgoing, sequences * length(own.shards(tp_rank).vocab()) * f32);
    }
  }
  return {static_cast<size_t>(incoming), static_cast<size_t>(outgoing), 0};
}

StagingBytes replica_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                             int tp_rank, const Placement& placement) {
  const int degree = replica.stages(stage).shards_size();
  const auto bytes = static_cast<size_t>(int64_t{placement.max_batch_tokens()} *
                                         model.hidden_size() * element_size(DType::kF32));
  const auto takes_part = [&](int other) {
    return other >= 0 && other < replica.stages_size() &&
           (tp_rank == 0 || replica.stages(other).shards_size() == degree);
  };
  return {takes_part(stage - 1) ? bytes : 0, 0, takes_part(stage + 1) ? bytes : 0};
}

}  // namespace trireme
