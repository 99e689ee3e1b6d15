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

// Scratch that products [T, N] of [T, K] with weights share.
struct CudaProducts {
  int64_t input = 0, output = 0, partial = 0, quantised = 0;

  // first: of the weight's input channels.
  void add(DType w, int64_t t, int64_t n, int64_t k, int64_t first) {
    if (!is_quantised(w)) {
      if (n == 0 || k == 0) return;
      input = std::max(input, cuda_input_copy_bytes(w, t, k));
      output = std::max(output, cuda_output_copy_bytes(t, n));
      return;
    }
    const int64_t lead = first % kQuantGroup;
    input = std::max(input, quantised_input_bytes(k, lead));
    partial = std::max(partial, quantised_partial_bytes(n, k, lead));
    quantised = std::max(quantised, quantised_unpacked_bytes(n, k) + kQuantisedCounterBytes);
    if (t <= kQuantisedTokens || n == 0 || k == 0) return;
    input = std::max(input, cuda_input_copy_bytes(DType::kBF16, t, k));
    if (n % 4 == 0) return;  // else each part of y is of such rows
    const int64_t cols = round_up(quantised_rows_at_once(n, k), 4);
    output = std::max(output, t * cols * int64_t{sizeof(float)});
  }
};

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
  // first: of the input channels.
  const auto packed = [&](DType type, int64_t n, int64_t k, int64_t first = 0) {
    if (is_quantised(type)) return quantised_weight_bytes(type, n, k, first);
    return shard.device() == DEVICE_KIND_CUDA ? cuda_weight_bytes(type, n, k)
                                              : packed_weight_bytes(type, n, k);
  };
  const int64_t first_q = int64_t{shard.heads().begin()} * model.head_dim();
  int64_t total = (vectors + prefix) * length(stage.layers());
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    const auto type = [&](Matrix matrix) { return weight_dtype(placement, matrix, layer); };
    total += packed(type(Matrix::kQkv), q + 2 * kv, hidden) +
             packed(type(Matrix::kAttentionOut), hidden, q, first_q) +
             packed(type(Matrix::kGateUp), 2 * ffn, hidden) +
             packed(type(Matrix::kDown), hidden, ffn, shard.ffn().begin());
  }
  const auto table = [&](Matrix matrix) {
    return packed(weight_dtype(placement, matrix), length(shard.vocab()), hidden);
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

int64_t cuda_scratch_bytes(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                           const Placement& placement) {
  const int64_t hidden = model.hidden_size();
  const int64_t q = int64_t{length(shard.heads())} * model.head_dim();
  const int64_t kv = int64_t{length(shard.kv_heads())} * model.head_dim();
  const int64_t ffn = length(shard.ffn());
  CudaProducts products;
  const int64_t tokens = placement.max_batch_tokens();
  const int64_t sequences = placement.max_sequences();
  const int64_t first_q = int64_t{shard.heads().begin()} * model.head_dim();
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    const auto add = [&](Matrix matrix, int64_t n, int64_t k, int64_t first) {
      products.add(weight_dtype(placement, matrix, layer), tokens, n, k, first);
    };
    add(Matrix::kQkv, q + 2 * kv, hidden, 0);
    add(Matrix::kAttentionOut, hidden, q, first_q);
    add(Matrix::kGateUp, 2 * ffn, hidden, 0);
    add(Matrix::kDown, hidden, ffn, shard.ffn().begin());
  }
  int64_t bytes = kCublasWorkspaceBytes;
  if (stage.has_head()) {
    products.add(head_dtype(model, placement), sequences, length(shard.vocab()), hidden, 0);
    if (shard.tp_rank() == 0) bytes += cuda_draw_scratch_bytes(sequences, model.vocab_size());
  }
  products.partial =
      std::max(products.partial,
               cuda_attention_scratch_bytes(sequences, length(shard.heads()),
                                            int64_t{model.prefix_length()} + placement.context(),
                                            model.head_dim()));
  return bytes + products.input + products.output + products.partial + products.quantised;
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
  if (shard.device() == DEVICE_KIND_CUDA) {
    bytes += cuda_scratch_bytes(model, stage, shard, placement);
  } else {
    bytes += shard.threads() * cpu_scratch_bytes(heads_of_kv(model, shard), model.head_dim());
  }
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

bool on_gpus(const StageSpec& stage) {
  return std::all_of(stage.shards().begin(), stage.shards().end(),
                     [](const ShardSpec& shard) { return shard.device() == DEVICE_KIND_CUDA; });
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
  StagingBytes bytes{static_cast<size_t>(incoming), static_cast<size_t>(outgoing)};
  if (own.shards(tp_rank).device() == DEVICE_KIND_CUDA) {
    bytes.copy = static_cast<size_t>(values * f32);
    if (own.has_head()) {
      const auto row = static_cast<size_t>(int64_t{placement.max_sequences()} * f32);
      bytes.copy =
          std::max(bytes.copy, row * static_cast<size_t>(length(own.shards(tp_rank).vocab())));
      if (tp_rank == 0) bytes.gathered = row * static_cast<size_t>(model.vocab_size());
    }
    if (on_gpus(own)) bytes.peers = static_cast<size_t>(peer_memory_bytes(ranks));
  }
  return bytes;
}

StagingBytes edge_staging(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                          int tp_rank, const Placement& placement, int other) {
  if (other < 0 || other >= replica.stages_size()) return {};
  const StageSpec& own = replica.stages(stage);
  if (tp_rank > 0 && replica.stages(other).shards_size() != own.shards_size()) return {};
  const auto bytes = static_cast<size_t>(int64_t{placement.max_batch_tokens()} *
                                         model.hidden_size() * element_size(DType::kF32));
  StagingBytes staging;
  (other < stage ? staging.incoming : staging.outbox) = bytes;
  if (own.shards(tp_rank).device() == DEVICE_KIND_CUDA) staging.copy = bytes;
  return staging;
}

uint64_t communication_bytes(const ModelSpec& model, const ReplicaSpec& replica, int stage,
                             int tp_rank, const Placement& placement) {
  const StageSpec& own = replica.stages(stage);
  const StagingBytes group = group_staging(model, replica, stage, tp_rank, placement);
  if (own.shards(tp_rank).device() == DEVICE_KIND_CUDA) {
    return on_gpus(own) ? group.gathered + group.peers : 0;
  }
  const StagingBytes before = edge_staging(model, replica, stage, tp_rank, placement, stage - 1);
  const StagingBytes after = edge_staging(model, replica, stage, tp_rank, placement, stage + 1);
  return group.incoming + group.outgoing + before.incoming + 2 * after.outbox;
}

}  // namespace trireme
