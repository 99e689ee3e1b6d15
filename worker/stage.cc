// SPDX-License-Identifier: Apache-2.0
#include "worker/stage.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "worker/group_tags.h"
#include "worker/model/config.h"

namespace trireme {
namespace {

KvLayer kv_shape(const ModelSpec& model, const ShardSpec& shard, const Placement& placement,
                 int32_t num_blocks) {
  KvLayer shape;
  shape.dtype = cache_dtype(placement);
  shape.num_blocks = num_blocks;
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

std::unique_ptr<Backend> make_backend_of(const Assign& assign) {
  const ShardSpec& shard =
      assign.placement().replicas(assign.replica()).stages(assign.stage()).shards(assign.tp_rank());
  BackendOptions options;
  options.device = shard.device() == DEVICE_KIND_CUDA ? "cuda" : "cpu";
  options.threads = options.device == "cuda" ? loading_threads(assign) : assign.threads();
  options.isa = assign.isa();
  options.device_index = assign.device_index();
  options.deterministic = assign.deterministic();
  options.record_steps = !assign.enforce_eager();
  return make_backend(options);
}

Stage::Stage(const Assign& assign, Checkpoint& checkpoint, Backend& backend, Transport& host,
             Transport& tensors, const LoadListener& progress)
    : assign_(assign),
      backend_(backend),
      weights_(load_with_node(assign_, checkpoint, backend, host, progress)),
      batch_(backend, assign_.model(), assign_.placement()),
      sampler_(assign_.logical_vocab_size()),
      device_sampler_(backend, assign_.logical_vocab_size()),
      histories_(assign_.placement().max_sequences()) {
  const Placement& placement = assign_.placement();
  for (const ShardSpec& other : spec().shards()) vocab_cols_.push_back(length(other.vocab()));
  join_groups(tensors);

  const ModelSpec& model = assign_.model();
  backend.reserve_workspace(heads_of_kv(model, shard()), model.head_dim());
  decoder_.emplace(model, spec(), shard(), weights_, placement, backend, *group_);
  const int64_t values = int64_t{placement.max_batch_tokens()} * model.hidden_size();
  residual_ = backend.allocate(static_cast<size_t>(values) * sizeof(float));
  if (spec().has_head()) allocate_head();
}

void Stage::allocate_head() {
  const ModelSpec& model = assign_.model();
  const int64_t sequences = assign_.placement().max_sequences();
  const auto allocate = [&](int64_t rows, int64_t cols, DType type) {
    return backend_.allocate(static_cast<size_t>(rows * cols * element_size(type)));
  };
  head_rows_ = allocate(sequences, model.hidden_size(), DType::kF32);
  head_normed_ = allocate(sequences, model.hidden_size(),
                          activation_dtype(head_dtype(model, assign_.placement())));
  head_local_ = allocate(sequences, length(shard().vocab()), DType::kF32);
  if (!reporter()) return;
  if (group_->size() > 1) head_ = allocate(sequences, model.vocab_size(), DType::kF32);
  host_logits_.resize(static_cast<size_t>(sequences) * static_cast<size_t>(model.vocab_size()));
}

void Stage::run_alike(int32_t sequences, int32_t tokens, int32_t end, bool largest) {
  MicroBatch batch;
  for (int32_t s = 0; s < sequences && tokens > 0; ++s) {
    SequenceChunk& chunk = *batch.add_chunks();
    const int32_t some = std::min(end, std::max(1, tokens - (sequences - 1 - s)));
    chunk.set_position(end - some);
    for (int32_t i = 0; i < some; ++i) chunk.add_token_ids(0);
    for (int32_t at = 0; at < end; at += assign_.placement().block_size()) chunk.add_block_table(0);
    chunk.set_sample(true);
    tokens -= some;
  }
  batch_.load(batch, !largest && replays(sequences));
  const Tensor x(residual_.data(), DType::kF32, batch_.view().num_tokens,
                 assign_.model().hidden_size());
  const auto& stages = assign_.placement().replicas(assign_.replica()).stages();
  const Tensor of_batch = x.row_range(0, batch_.num_tokens());
  if (largest && !spec().has_embedding() && on_gpus(stages[assign_.stage() - 1])) receive(of_batch);
  compute(x);
  if (largest && !spec().has_head() && on_gpus(stages[assign_.stage() + 1])) hand_on(of_batch);
  settle();
  if (!reporter()) return;
  std::vector<int32_t> drawn(static_cast<size_t>(batch_.num_samples()));
  const std::vector<DrawRow> rows(drawn.size());
  backend_.sample(drawn, logits_of(batch_.num_samples()), rows, {}, assign_.logical_vocab_size());
}

// One block stands for all of them: what is computed is not looked at.
void Stage::warm_up() {
  if (!on_gpus(spec())) return;
  const Placement& placement = assign_.placement();
  allocate_cache(1);
  const int32_t sequences = std::min(placement.max_sequences(), placement.max_batch_tokens());
  run_alike(sequences, placement.max_batch_tokens(), placement.context(), true);
  run_alike(sequences, sequences, placement.context(), true);
  backend_.synchronize();
  kv_.reset();
}

void Stage::record_steps() {
  if (!on_gpus(spec())) return;
  const Placement& placement = assign_.placement();
  const int32_t sequences = std::min(placement.max_sequences(), placement.max_batch_tokens());
  for (int32_t size = 1; size <= sequences; size *= 2) {
    // The first time is as it is, the second is recorded.
    for (int time = 0; time < (replays(size) ? 2 : 1); ++time) run_alike(size, size, 1, false);
  }
  backend_.synchronize();
}

KvRoom Stage::kv_room() const {
  const Placement& placement = assign_.placement();
  const int64_t block = length(spec().layers()) *
                        kv_layer_bytes(cache_dtype(placement), 1, length(shard().kv_heads()),
                                       placement.block_size(), assign_.model().head_dim());
  // Where no step has run, scratch will grow to what the plan says.
  const uint64_t scratch = shard().activation_bytes();
  const uint64_t growth = scratch - std::min(scratch, activation_bytes());
  return room_for_cache(backend_.device_memory(), static_cast<uint64_t>(block), growth,
                        num_blocks_of(placement, assign_.replica()));
}

void Stage::allocate_cache(int32_t num_blocks) {
  kv_.reset();
  kv_.emplace(backend_, length(spec().layers()),
              kv_shape(assign_.model(), shard(), assign_.placement(), num_blocks));
  batch_.set_num_blocks(num_blocks);
}

void Stage::join_groups(Transport& tensors) {
  const Placement& placement = assign_.placement();
  const ReplicaSpec& replica = placement.replicas(assign_.replica());
  std::vector<int> ranks;
  for (const ShardSpec& other : spec().shards()) ranks.push_back(other.rank());
  group_ = tensors.make_group(ranks, stage_tag(placement, assign_.replica(), assign_.stage()));
  communication_bytes_ = group_->reserve(
      group_staging(assign_.model(), replica, assign_.stage(), assign_.tp_rank(), placement), -1);
  // The edge that ends at `stage`, to a rank of the stage `other`.
  const auto edge = [&](int stage, int other) -> std::unique_ptr<Communicator> {
    const int index = assign_.tp_rank();
    if (stage == 0 || stage == replica.stages_size() || index >= num_edges(replica, stage)) {
      return nullptr;
    }
    const int pair[] = {replica.stages(stage - 1).shards(index).rank(),
                        replica.stages(stage).shards(index).rank()};
    auto made = tensors.make_edge(pair, edge_tag(placement, assign_.replica(), stage, index));
    communication_bytes_ += made->reserve(
        edge_staging(assign_.model(), replica, assign_.stage(), index, placement, other), 1);
    return made;
  };
  previous_ = edge(assign_.stage(), assign_.stage() - 1);
  next_ = edge(assign_.stage() + 1, assign_.stage() + 1);
}

void Stage::settle() {
  for (const auto* way : {&group_, &previous_, &next_}) {
    if (*way != nullptr) (*way)->settle();
  }
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

void Stage::receive(Tensor x) {
  begin(OPERATION_RECEIVE);
  if (previous_ != nullptr) previous_->recv(x, 0);
  const ReplicaSpec& replica = assign_.placement().replicas(assign_.replica());
  if (num_edges(replica, assign_.stage()) == group_->size()) return;
  begin(OPERATION_BROADCAST);
  group_->broadcast(x, 0);
}

void Stage::hand_on(Tensor x) {
  begin(OPERATION_SEND);
  if (next_ != nullptr) next_->send(x, 1);
}

MicroBatchResult Stage::run(const MicroBatch& batch) {
  MicroBatchResult result;
  result.set_id(batch.id());
  batch_.load(batch, replays(batch.chunks_size()));
  const Tensor x(residual_.data(), DType::kF32, batch_.view().num_tokens,
                 assign_.model().hidden_size());
  const Tensor of_batch = x.row_range(0, batch_.num_tokens());
  if (!spec().has_embedding()) receive(of_batch);
  if (observer_ && spec().has_head()) {
    forward(x);
    report_all(batch, x);
    logits(x, batch_.sample_rows(), batch_.num_sample_rows());
  } else {
    compute(x);
  }
  if (spec().has_head()) {
    sample(batch, result);
  } else {
    hand_on(of_batch);
  }
  settle();
  return result;
}

bool Stage::replays(int32_t sequences) const {
  if (!backend_.can_replay() || observer_) return false;
  const int64_t rows = BatchTensors::padded_rows(sequences);
  return group_->can_record(rows * assign_.model().hidden_size() * element_size(DType::kF32));
}

void Stage::compute(Tensor x) {
  const auto operations = [&] {
    forward(x);
    if (spec().has_head()) own_logits(x, batch_.sample_rows(), batch_.num_sample_rows());
  };
  if (batch_.key() == 0) {
    operations();
  } else {
    begin(OPERATION_ATTENTION);
    backend_.replay(batch_.key(), operations);
    group_->replayed();
  }
  if (spec().has_head()) gather_logits(batch_.num_sample_rows());
}

void Stage::forward(Tensor x) {
  if (spec().has_embedding()) embed(x);
  decoder_->forward(x, batch_.view(), *kv_);
}

void Stage::logits(Tensor x, const int32_t* rows, int64_t count) {
  own_logits(x, rows, count);
  gather_logits(count);
}

void Stage::own_logits(Tensor x, const int32_t* rows, int64_t count) {
  if (count == 0) return;
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
}

void Stage::gather_logits(int64_t count) {
  if (count == 0 || group_->size() == 1) return;
  const Tensor local(head_local_.data(), DType::kF32, count, length(shard().vocab()));
  begin(OPERATION_GATHER);
  group_->gather_columns(logits_of(count), local, vocab_cols_, 0);
}

Tensor Stage::logits_of(int64_t count) const {
  const Buffer& all = group_->size() == 1 ? head_local_ : head_;
  return {all.data(), DType::kF32, count, assign_.model().vocab_size()};
}

const float* Stage::download_logits(Tensor logits) {
  settle();
  backend_.download(host_logits_.data(), logits.data,
                    static_cast<size_t>(logits.rows * logits.cols) * sizeof(float));
  backend_.synchronize();
  return host_logits_.data();
}

void Stage::sample(const MicroBatch& batch, MicroBatchResult& result) {
  if (!reporter()) return;
  histories_.follow(batch);
  if (batch_.num_samples() == 0) return;
  const Tensor all = logits_of(batch_.num_samples());
  begin(OPERATION_SAMPLE);
  if (sample_on_device(batch, all, result)) return;
  const float* row = download_logits(all);
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

bool Stage::sample_on_device(const MicroBatch& batch, Tensor logits, MicroBatchResult& result) {
  if (backend_.in_host_memory()) return false;
  for (const SequenceChunk& chunk : batch.chunks()) {
    if (!chunk.sample()) continue;
    device_sampler_.add(chunk.draw(), logits.cols, chunk.position() + chunk.token_ids_size(),
                        histories_.of(chunk.sequence()));
  }
  settle();
  const std::span<const int32_t> ids = device_sampler_.draw_all(logits);
  if (ids.empty()) return false;
  size_t next = 0;
  for (const SequenceChunk& chunk : batch.chunks()) {
    if (!chunk.sample()) continue;
    SampledToken& token = *result.add_tokens();
    token.set_sequence(chunk.sequence());
    token.set_token(ids[next]);
    const Tensor row = logits.row_range(static_cast<int64_t>(next++), 1);
    if (chunk.draw().logprobs() == 0) continue;
    sampler_.report({download_logits(row), static_cast<size_t>(row.cols)}, chunk.draw().logprobs(),
                    token);
  }
  return true;
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
    logits(x, static_cast<const int32_t*>(device_rows_.data()) + first, count);
    const float* row = reporter() ? download_logits(logits_of(count)) : nullptr;
    for (int64_t index = 0; row != nullptr && index < count; ++index, row += vocab) {
      const auto& [sequence, position] = owners[static_cast<size_t>(first + index)];
      observer_(sequence, position, {row, vocab});
    }
  }
}

}  // namespace trireme
