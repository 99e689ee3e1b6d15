// SPDX-License-Identifier: Apache-2.0
#include "worker/batch_tensors.h"

#include <string>

#include "kernels/base/error.h"

namespace trireme {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot run the micro-batch: " + what);
}

}  // namespace

BatchTensors::BatchTensors(Backend& backend, const ModelSpec& model, const Placement& placement)
    : backend_(backend),
      vocab_size_(model.vocab_size()),
      num_blocks_(placement.num_blocks()),
      block_size_(placement.block_size()),
      max_tokens_(placement.max_batch_tokens()),
      max_sequences_(placement.max_sequences()),
      max_blocks_((placement.context() + placement.block_size() - 1) / placement.block_size()),
      context_(placement.context()) {
  const auto tokens = static_cast<size_t>(max_tokens_);
  const auto sequences = static_cast<size_t>(max_sequences_);
  const size_t table = sequences * static_cast<size_t>(max_blocks_);
  ids_.reserve(tokens);
  positions_.reserve(tokens);
  slots_.reserve(tokens);
  query_begin_.reserve(sequences + 1);
  contexts_.reserve(sequences);
  tables_.reserve(table);
  host_sample_rows_.reserve(sequences);
  storage_ = backend.allocate((3 * tokens + 3 * sequences + 1 + table) * sizeof(int32_t));

  auto* at = static_cast<int32_t*>(storage_.data());
  const auto take = [&at](size_t count) {
    const int32_t* array = at;
    at += count;
    return array;
  };
  view_.token_ids = take(tokens);
  view_.positions = take(tokens);
  view_.slots = take(tokens);
  view_.query_begin = take(sequences + 1);
  view_.context = take(sequences);
  device_sample_rows_ = take(sequences);
  view_.block_tables = take(table);
}

void BatchTensors::check(const MicroBatch& batch) const {
  if (batch.chunks_size() < 1 || batch.chunks_size() > max_sequences_) {
    refuse("it has " + std::to_string(batch.chunks_size()) + " chunks, the placement allows 1 to " +
           std::to_string(max_sequences_));
  }
  int64_t tokens = 0;
  for (const SequenceChunk& chunk : batch.chunks()) {
    const int64_t end = int64_t{chunk.position()} + chunk.token_ids_size();
    tokens += chunk.token_ids_size();
    if (chunk.position() < 0 || chunk.token_ids().empty() || end > context_) {
      refuse("a chunk has positions [" + std::to_string(chunk.position()) + ", " +
             std::to_string(end) + "), the context is " + std::to_string(context_));
    }
    if (chunk.block_table_size() > max_blocks_ ||
        int64_t{chunk.block_table_size()} * block_size_ < end) {
      refuse("a chunk of " + std::to_string(end) + " positions has " +
             std::to_string(chunk.block_table_size()) + " blocks of " +
             std::to_string(block_size_));
    }
    for (const int32_t block : chunk.block_table()) {
      if (block < 0 || block >= num_blocks_) {
        refuse("block " + std::to_string(block) + " of " + std::to_string(num_blocks_));
      }
    }
    for (const int32_t id : chunk.token_ids()) {
      if (id < 0 || id >= vocab_size_) {
        refuse("token id " + std::to_string(id) + " of " + std::to_string(vocab_size_));
      }
    }
  }
  if (tokens > max_tokens_) {
    refuse("it has " + std::to_string(tokens) + " tokens, the placement allows " +
           std::to_string(max_tokens_));
  }
}

void BatchTensors::append(const SequenceChunk& chunk) {
  for (int index = 0; index < chunk.token_ids_size(); ++index) {
    const int32_t position = chunk.position() + index;
    ids_.push_back(chunk.token_ids(index));
    positions_.push_back(position);
    slots_.push_back(chunk.block_table(position / block_size_) * block_size_ +
                     position % block_size_);
  }
  query_begin_.push_back(static_cast<int32_t>(ids_.size()));
  contexts_.push_back(chunk.position() + chunk.token_ids_size());
  tables_.insert(tables_.end(), chunk.block_table().begin(), chunk.block_table().end());
  // Rows of the table are as wide as the longest sequence needs; load() has set max_blocks.
  tables_.resize(contexts_.size() * static_cast<size_t>(view_.max_blocks));
  if (chunk.sample()) host_sample_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
}

void BatchTensors::load(const MicroBatch& batch) {
  check(batch);
  view_.max_blocks = view_.max_queries = view_.max_context = 0;
  for (const SequenceChunk& chunk : batch.chunks()) {
    const int32_t queries = chunk.token_ids_size();
    view_.max_blocks = std::max(view_.max_blocks, chunk.block_table_size());
    view_.max_queries = std::max(view_.max_queries, queries);
    view_.max_context = std::max(view_.max_context, chunk.position() + queries);
  }
  for (auto* array :
       {&ids_, &positions_, &slots_, &query_begin_, &contexts_, &tables_, &host_sample_rows_}) {
    array->clear();
  }
  query_begin_.push_back(0);
  for (const SequenceChunk& chunk : batch.chunks()) append(chunk);
  view_.num_tokens = static_cast<int32_t>(ids_.size());
  view_.num_sequences = batch.chunks_size();

  const auto upload = [this](const int32_t* device, const std::vector<int32_t>& host) {
    backend_.upload(const_cast<int32_t*>(device), host.data(), host.size() * sizeof(int32_t));
  };
  upload(view_.token_ids, ids_);
  upload(view_.positions, positions_);
  upload(view_.slots, slots_);
  upload(view_.query_begin, query_begin_);
  upload(view_.context, contexts_);
  upload(view_.block_tables, tables_);
  upload(device_sample_rows_, host_sample_rows_);
}

}  // namespace trireme
