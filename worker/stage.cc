// SPDX-License-Identifier: Apache-2.0
#include "worker/stage.h"

#include <numeric>
#include <string>

#include "kernels/base/error.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "worker/model/config.h"

namespace trireme {
namespace {

KvLayer kv_shape(const ModelSpec& model, const ShardSpec& shard, const Placement& placement) {
  KvLayer shape;
  shape.dtype = cache_dtype(placement);
  shape.num_blocks = placement.num_blocks();
  shape.num_heads = length(shard.kv_heads());
  shape.block_size = placement.block_size();
  shape.head_dim = model.head_dim();
  return shape;
}

// The reference rounds the factor of the embeddings to the type that it computes in.
float embedding_scale(const ModelSpec& model, DType table) {
  const auto exact = static_cast<float>(model.embedding_scale());
  return activation_dtype(table) == DType::kBF16 ? bf16_to_float(float_to_bf16(exact)) : exact;
}

// The bounds that a config is held to, so that no product of sizes overflows.
void check_model(const ModelSpec& model) {
  struct Size {
    const char* field;
    int32_t value, most;
    int32_t least = 1;
  };
  for (const Size& size :
       {Size{"num_layers", model.num_layers(), kMaxLayers},
        {"hidden_size", model.hidden_size(), kMaxHidden},
        {"num_heads", model.num_heads(), kMaxHeads},
        {"num_kv_heads", model.num_kv_heads(), model.num_heads()},
        {"head_dim", model.head_dim(), kMaxHeadDim},
        {"ffn_size", model.ffn_size(), kMaxFfn},
        {"vocab_size", model.vocab_size(), kMaxVocab},
        {"context_length", model.context_length(), kMaxContext},
        {"rotary_dim", model.rope().rotary_dim(), model.head_dim(), 2},
        {"local rotary_dim", model.local_rope().rotary_dim(), model.head_dim(), 0},
        {"prefix_length", model.prefix_length(), kMaxContext, 0},
        {"prefix_hidden", model.prefix_hidden(), kMaxFfn, 0}}) {
    if (size.value >= size.least && size.value <= size.most) continue;
    throw Error(Code::kInvalidArgument, std::string("cannot take the assignment: ") + size.field +
                                            " is " + std::to_string(size.value) + ", needed is " +
                                            std::to_string(size.least) + " to " +
                                            std::to_string(size.most));
  }
}

}  // namespace

void check_assignment(const Assign& assign) {
  const Placement& placement = assign.placement();
  const bool known =
      assign.replica() >= 0 && assign.replica() < placement.replicas_size() &&
      assign.stage() >= 0 && assign.stage() < placement.replicas(assign.replica()).stages_size() &&
      assign.tp_rank() >= 0 &&
      assign.tp_rank() < placement.replicas(assign.replica()).stages(assign.stage()).shards_size();
  if (!known) {
    throw Error(Code::kInvalidArgument,
                "cannot take the assignment: replica " + std::to_string(assign.replica()) +
                    ", stage " + std::to_string(assign.stage()) + ", tp_rank " +
                    std::to_string(assign.tp_rank()) + " is not in its placement");
  }
  check_model(assign.model());
  validate_placement(assign.model(), placement);
  if (assign.logical_vocab_size() < 1 ||
      assign.logical_vocab_size() > assign.model().vocab_size()) {
    throw Error(Code::kInvalidArgument,
                "cannot take the assignment: " + std::to_string(assign.logical_vocab_size()) +
                    " tokens in a vocabulary of " + std::to_string(assign.model().vocab_size()));
  }
  check_node_ranks(assign);
  const int windows = assign.model().windows_size();
  if (windows != 0 && windows != assign.model().num_layers()) {
    throw Error(Code::kInvalidArgument,
                "cannot take the assignment: its model has " + std::to_string(windows) +
                    " windows for " + std::to_string(assign.model().num_layers()) + " layers");
  }
}

Stage::Stage(const Assign& assign, Checkpoint& checkpoint, Backend& backend, Transport& transport,
             const LoadListener& progress)
    : assign_(assign),
      backend_(backend),
      weights_(load_with_node(assign_, checkpoint, backend, transport, progress)),
      batch_(backend, assign_.model(), assign_.placement()),
      sampler_(assign_.logical_vocab_size()),
      histories_(assign_.placement().max_sequences()) {
  const Placement& placement = assign_.placement();
  const ReplicaSpec& replica = placement.replicas(assign_.replica());
  std::vector<int> all_ranks;
  std::vector<int> group_ranks;
  for (int index = 0; index < replica.stages_size(); ++index) {
    if (index == assign_.stage() - 1) first_of_previous_ = static_cast<int>(all_ranks.size());
    if (index == assign_.stage() + 1) first_of_next_ = static_cast<int>(all_ranks.size());
    for (const ShardSpec& other : replica.stages(index).shards()) {
      all_ranks.push_back(other.rank());
      if (index == assign_.stage()) group_ranks.push_back(other.rank());
    }
  }
  for (const ShardSpec& other : spec().shards()) vocab_cols_.push_back(length(other.vocab()));
  int tag = 0;  // the replicas before this one have those below
  for (int index = 0; index < assign_.replica(); ++index) {
    tag += 1 + placement.replicas(index).stages_size();
  }
  replica_ = transport.make_group(all_ranks, tag);
  group_ = transport.make_group(group_ranks, tag + 1 + assign_.stage());
  communication_bytes_ =
      replica_->reserve(
          replica_staging(assign_.model(), replica, assign_.stage(), assign_.tp_rank(), placement),
          receiver()) +
      group_->reserve(
          group_staging(assign_.model(), replica, assign_.stage(), assign_.tp_rank(), placement),
          -1);

  const ModelSpec& model = assign_.model();
  const int64_t tokens = placement.max_batch_tokens();
  const int64_t sequences = placement.max_sequences();
  const int64_t hidden = model.hidden_size();
  kv_.emplace(backend, length(spec().layers()), kv_shape(model, shard(), placement));
  backend.reserve_workspace(heads_of_kv(model, shard()), model.head_dim());
  decoder_.emplace(model, spec(), shard(), weights_, placement, backend, *group_);
  const auto allocate = [&](int64_t rows, int64_t cols, DType type) {
    return backend.allocate(static_cast<size_t>(rows * cols * element_size(type)));
  };
  residual_ = allocate(tokens, hidden, DType::kF32);
  if (!spec().has_head()) return;
  head_rows_ = allocate(sequences, hidden, DType::kF32);
  head_normed_ = allocate(sequences, hidden, activation_dtype(head_dtype(model, placement)));
  head_local_ = allocate(sequences, length(shard().vocab()), DType::kF32);
  if (!reporter()) return;
  if (group_->size() > 1) head_ = allocate(sequences, model.vocab_size(), DType::kF32);
  host_logits_.resize(static_cast<size_t>(sequences) * static_cast<size_t>(model.vocab_size()));
}

const StageSpec& Stage::spec() const {
  return assign_.placement().replicas(assign_.replica()).stages(assign_.stage());
}

const ShardSpec& Stage::shard() const { return spec().shards(assign_.tp_rank()); }

bool Stage::reporter() const { return spec().has_head() && assign_.tp_rank() == 0; }

uint64_t Stage::activation_bytes() const {
  uint64_t total = backend_.workspace_bytes() + decoder_->bytes() + batch_.bytes() +
                   host_logits_.size() * sizeof(float);
  for (const Buffer* buffer : {&residual_, &head_rows_, &head_normed_, &head_local_, &head_}) {
    total += buffer->bytes();
  }
  return total;
}

void Stage::embed(Tensor x) {
  begin(OPERATION_EMBED);
  backend_.embed(x, batch_.view().token_ids, weights_.embedding, shard().vocab().begin());
  // Each id is a row of exactly one rank and zero on the others.
  begin(OPERATION_ALL_REDUCE);
  group_->all_reduce_sum(x);
  if (assign_.model().embedding_scale() > 0) {
    backend_.scale(x, embedding_scale(assign_.model(), weights_.embedding.dtype));
  }
}

// Between stages of equal degree tp_rank j sends to tp_rank j; else the first sends to the first,
// which tells its group.
void Stage::receive(Tensor x) {
  const ReplicaSpec& replica = assign_.placement().replicas(assign_.replica());
  const int senders = replica.stages(assign_.stage() - 1).shards_size();
  begin(OPERATION_RECEIVE);
  if (senders == group_->size()) {
    replica_->recv(x, first_of_previous_ + assign_.tp_rank());
    return;
  }
  if (assign_.tp_rank() == 0) replica_->recv(x, first_of_previous_);
  begin(OPERATION_BROADCAST);
  group_->broadcast(x, 0);
}

int Stage::receiver() const {
  const ReplicaSpec& replica = assign_.placement().replicas(assign_.replica());
  if (spec().has_head()) return -1;
  const int receivers = replica.stages(assign_.stage() + 1).shards_size();
  if (receivers == spec().shards_size()) return first_of_next_ + assign_.tp_rank();
  return assign_.tp_rank() == 0 ? first_of_next_ : -1;
}

void Stage::hand_on(Tensor x) {
  begin(OPERATION_SEND);
  if (receiver() >= 0) replica_->send(x, receiver());
}

MicroBatchResult Stage::run(const MicroBatch& batch) {
  MicroBatchResult result;
  result.set_id(batch.id());
  batch_.load(batch);
  const Tensor x(residual_.data(), DType::kF32, batch_.view().num_tokens,
                 assign_.model().hidden_size());
  if (spec().has_embedding()) {
    embed(x);
  } else {
    receive(x);
  }
  decoder_->forward(x, batch_.view(), *kv_);
  if (!spec().has_head()) {
    hand_on(x);
    return result;
  }
  if (observer_) report_all(batch, x);
  sample(batch, x, result);
  return result;
}

const float* Stage::logits(Tensor x, const int32_t* rows, int64_t count) {
  const ModelSpec& model = assign_.model();
  const Weight& head = model.tied_embeddings() ? weights_.embedding : weights_.head;
  const Tensor gathered(head_rows_.data(), DType::kF32, count, x.cols);
  const Tensor normed(head_normed_.data(), activation_dtype(head.dtype), count, x.cols);
  const Tensor local(head_local_.data(), DType::kF32, count, length(shard().vocab()));
  begin(OPERATION_HEAD);
  backend_.gather_rows(gathered, x, rows);
  backend_.rms_norm(normed, gathered, static_cast<const float*>(weights_.final_norm.data()),
                    static_cast<float>(model.norm_eps()));
  backend_.matmul(local, normed, head, nullptr);
  if (model.logit_softcap() > 0) {
    backend_.soft_cap(local, static_cast<float>(model.logit_softcap()));
  }
  const void* all = local.data;
  if (group_->size() > 1) {
    const Tensor joined(head_.data(), DType::kF32, count, model.vocab_size());
    begin(OPERATION_GATHER);
    group_->gather_columns(joined, local, vocab_cols_, 0);
    all = joined.data;
  }
  if (!reporter()) return nullptr;
  backend_.download(host_logits_.data(), all,
                    static_cast<size_t>(count * model.vocab_size()) * sizeof(float));
  backend_.synchronize();
  return host_logits_.data();
}

void Stage::sample(const MicroBatch& batch, Tensor x, MicroBatchResult& result) {
  if (reporter()) histories_.follow(batch);
  const auto count = static_cast<int64_t>(batch_.host_sample_rows().size());
  if (count == 0) return;
  const float* row = logits(x, batch_.sample_rows(), count);
  if (row == nullptr) return;
  begin(OPERATION_SAMPLE);
  const auto vocab = static_cast<size_t>(assign_.model().vocab_size());
  for (const SequenceChunk& chunk : batch.chunks()) {
    if (!chunk.sample()) continue;
    SampledToken& token = *result.add_tokens();
    token.set_sequence(chunk.sequence());
    sampler_.draw({row, vocab}, chunk.draw(), chunk.position() + chunk.token_ids_size(),
                  histories_.of(chunk.sequence()), token);
    row += vocab;
  }
}

void Stage::report_all(const MicroBatch& batch, Tensor x) {
  const auto vocab = static_cast<size_t>(assign_.model().vocab_size());
  if (device_rows_.data() == nullptr) {
    const auto tokens = static_cast<size_t>(assign_.placement().max_batch_tokens());
    every_row_.resize(tokens);
    std::iota(every_row_.begin(), every_row_.end(), 0);
    device_rows_ = backend_.allocate(tokens * sizeof(int32_t));
    backend_.upload(device_rows_.data(), every_row_.data(), tokens * sizeof(int32_t));
  }
  std::vector<std::pair<uint64_t, int32_t>> owners;  // sequence and position of each row
  for (const SequenceChunk& chunk : batch.chunks()) {
    for (int index = 0; index < chunk.token_ids_size(); ++index) {
      owners.emplace_back(chunk.sequence(), chunk.position() + index);
    }
  }
  const int64_t most = assign_.placement().max_sequences();
  for (int64_t first = 0; first < x.rows; first += most) {
    const int64_t count = std::min(most, x.rows - first);
    const float* row = logits(x, static_cast<const int32_t*>(device_rows_.data()) + first, count);
    for (int64_t index = 0; row != nullptr && index < count; ++index, row += vocab) {
      const auto& [sequence, position] = owners[static_cast<size_t>(first + index)];
      observer_(sequence, position, {row, vocab});
    }
  }
}

}  // namespace trireme
