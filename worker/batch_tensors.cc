// SPDX-License-Identifier: Apache-2.0
#include "worker/batch_tensors.h"

#include <algorithm>
#include <bit>
#include <string>

#include "kernels/base/error.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

// Contexts of padded steps are powers of two from here on: a larger one than needed costs the
// attention's ctas that find nothing to do.
constexpr int32_t kShortestContext = 256;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(Code::kInvalidArgument, "cannot run the micro-batch: " + what);
}

// The number of sequences, with padding.
int32_t padded(int32_t sequences) {
  constexpr int32_t kStep = 8;
  if (sequences < kStep) return static_cast<int32_t>(std::bit_ceil(uint32_t(sequences)));
  return static_cast<int32_t>(round_up(sequences, kStep));
}

}  // namespace

int64_t BatchTensors::padded_rows(int32_t sequences) { return padded(sequences); }

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
  host_.reserve(3 * tokens + 3 * sequences + 1 + table);
  storage_ = backend.allocate(host_.capacity() * sizeof(int32_t));
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

void BatchTensors::load(const MicroBatch& batch, bool pad_steps) {
  check(batch);
  view_ = {};
  view_.num_sequences = batch.chunks_size();
  num_samples_ = 0;
  for (const SequenceChunk& chunk : batch.chunks()) {
    const int32_t queries = chunk.token_ids_size();
    view_.num_tokens += queries;
    view_.max_blocks = std::max(view_.max_blocks, chunk.block_table_size());
    view_.max_queries = std::max(view_.max_queries, queries);
    view_.max_context = std::max(view_.max_context, chunk.position() + queries);
    num_samples_ += chunk.sample() ? 1 : 0;
  }
  num_tokens_ = view_.num_tokens;
  num_sample_rows_ = num_samples_;
  key_ = 0;
  const bool decode = view_.max_queries == 1 && num_samples_ == view_.num_sequences;
  if (pad_steps && decode) pad();
  place();
  write(batch);
  backend_.upload(storage_.data(), host_.data(), host_.size() * sizeof(int32_t));
}

void BatchTensors::pad() {
  const int32_t most = std::min(max_sequences_, max_tokens_);
  view_.num_sequences = std::min(padded(view_.num_sequences), most);
  view_.num_tokens = num_sample_rows_ = view_.num_sequences;
  const auto context = static_cast<uint32_t>(std::max(view_.max_context, kShortestContext));
  view_.max_context = static_cast<int32_t>(std::min<int64_t>(std::bit_ceil(context), context_));
  view_.max_blocks = (view_.max_context + block_size_ - 1) / block_size_;
  key_ =
      static_cast<uint64_t>(view_.num_sequences) << 32 | static_cast<uint32_t>(view_.max_context);
}

// Arrays stand behind each other in the order of write().
void BatchTensors::place() {
  const auto* at = static_cast<const int32_t*>(storage_.data());
  const auto take = [&at](int64_t count) {
    const int32_t* array = at;
    at += count;
    return array;
  };
  view_.token_ids = take(view_.num_tokens);
  view_.positions = take(view_.num_tokens);
  view_.slots = take(view_.num_tokens);
  view_.query_begin = take(view_.num_sequences + 1);
  view_.context = take(view_.num_sequences);
  sample_rows_ = take(num_sample_rows_);
  view_.block_tables = take(int64_t{view_.num_sequences} * view_.max_blocks);
}

void BatchTensors::write(const MicroBatch& batch) {
  host_.clear();
  // Appends value(chunk, index of its token) for each token, and `filling` for each padding row.
  const auto of_tokens = [&](auto value, int32_t filling) {
    for (const SequenceChunk& chunk : batch.chunks()) {
      for (int index = 0; index < chunk.token_ids_size(); ++index) {
        host_.push_back(value(chunk, index));
      }
    }
    host_.resize(host_.size() + static_cast<size_t>(view_.num_tokens - num_tokens_), filling);
  };
  of_tokens([](const SequenceChunk& chunk, int index) { return chunk.token_ids(index); }, 0);
  of_tokens([](const SequenceChunk& chunk, int index) { return chunk.position() + index; }, 0);
  of_tokens(
      [this](const SequenceChunk& chunk, int index) {
        const int32_t position = chunk.position() + index;
        return chunk.block_table(position / block_size_) * block_size_ + position % block_size_;
      },
      -1);
  int32_t begin = 0;
  for (int32_t s = 0; s < view_.num_sequences; ++s) {
    host_.push_back(begin);
    begin += s < batch.chunks_size() ? batch.chunks(s).token_ids_size() : 1;
  }
  host_.push_back(begin);
  for (int32_t s = 0; s < view_.num_sequences; ++s) {
    const bool real = s < batch.chunks_size();
    host_.push_back(real ? batch.chunks(s).position() + batch.chunks(s).token_ids_size() : 1);
  }
  write_sample_rows(batch);
  for (int32_t s = 0; s < view_.num_sequences; ++s) {
    const size_t end = host_.size() + static_cast<size_t>(view_.max_blocks);
    if (s < batch.chunks_size()) {
      const auto& blocks = batch.chunks(s).block_table();  // maybe more than the context needs
      host_.insert(host_.end(), blocks.begin(),
                   blocks.begin() + std::min(blocks.size(), view_.max_blocks));
    }
    host_.resize(end);
  }
}

void BatchTensors::write_sample_rows(const MicroBatch& batch) {
  int32_t end = 0;
  for (const SequenceChunk& chunk : batch.chunks()) {
    end += chunk.token_ids_size();
    if (chunk.sample()) host_.push_back(end - 1);
  }
  while (end < view_.num_tokens) host_.push_back(end++);
}

}  // namespace trireme
