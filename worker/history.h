// SPDX-License-Identifier: Apache-2.0
// The ids that penalties count, kept where tokens are drawn. Micro-batches carry every id of a
// sequence once, so none is sent a second time: a draw costs no bytes for its history.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "proto/micro_batch.pb.h"

namespace trireme {

class Histories {
 public:
  // max_sequences: running at once; the coordinator releases what does not run any more.
  explicit Histories(int32_t max_sequences) : max_sequences_(static_cast<size_t>(max_sequences)) {}

  // Takes in a micro-batch, before its draws. Ids are kept by position: what is computed again
  // after a preemption does not count twice. Throws kInvalidArgument for a chunk
  // behind a gap and for more histories than sequences can run. REQUIRES: chunks that
  // BatchTensors has checked.
  void follow(const MicroBatch& batch);

  // Ids from position 0 to the end of its last chunk; none for a sequence without penalties.
  std::span<const int32_t> of(uint64_t sequence) const;
  size_t size() const { return ids_.size(); }

 private:
  size_t max_sequences_;
  std::unordered_map<uint64_t, std::vector<int32_t>> ids_;
};

}  // namespace trireme
