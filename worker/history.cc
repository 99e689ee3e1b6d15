// SPDX-License-Identifier: Apache-2.0
#include "worker/history.h"

#include <string>

#include "kernels/base/error.h"
#include "worker/sampler.h"

namespace trireme {

void Histories::follow(const MicroBatch& batch) {
  for (const uint64_t sequence : batch.released()) ids_.erase(sequence);
  for (const SequenceChunk& chunk : batch.chunks()) {
    if (!has_penalties(chunk.draw())) continue;
    const auto found = ids_.find(chunk.sequence());
    const size_t known = found == ids_.end() ? 0 : found->second.size();
    const auto position = static_cast<size_t>(chunk.position());
    if (position > known) {
      throw Error(Code::kInvalidArgument,
                  "cannot run the micro-batch: a chunk with penalties begins at position " +
                      std::to_string(position) + ", only " + std::to_string(known) +
                      " ids of its sequence have come before");
    }
    if (found == ids_.end() && ids_.size() >= max_sequences_) {
      throw Error(Code::kInvalidArgument,
                  "cannot run the micro-batch: one more sequence with penalties beside " +
                      std::to_string(ids_.size()) + ", the placement allows " +
                      std::to_string(max_sequences_));
    }
    std::vector<int32_t>& ids = ids_[chunk.sequence()];
    ids.resize(position);
    ids.insert(ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
  }
}

std::span<const int32_t> Histories::of(uint64_t sequence) const {
  const auto found = ids_.find(sequence);
  if (found == ids_.end()) return {};
  return found->second;
}

}  // namespace trireme
