// SPDX-License-Identifier: Apache-2.0
// The draws of Sampler by a backend that can, where the logits lie: tokens go to the host, not
// logits.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/backend.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

// Owned by a Stage and used by its thread.
class DeviceSampler {
 public:
  // Ids from logical_vocab_size on are padding rows: never drawn.
  DeviceSampler(Backend& backend, int32_t logical_vocab_size)
      : backend_(backend), logical_vocab_size_(logical_vocab_size) {}

  // Draws of the next draw_all(), row by row; arguments and errors as Sampler::draw().
  void add(const DrawSpec& spec, int64_t vocab_size, int32_t position,
           std::span<const int32_t> history);
  // The ids in the order of add(), until the next call; none where the host is to draw. Throws
  // kInternal as Sampler::draw().
  std::span<const int32_t> draw_all(Tensor logits);

 private:
  void change_scores(const DrawSpec& spec, std::span<const int32_t> history);

  Backend& backend_;
  const int32_t logical_vocab_size_;
  std::vector<DrawRow> rows_;
  std::vector<ScoreChange> changes_;
  std::unordered_map<int32_t, ScoreChange> of_row_;
  std::vector<int32_t> drawn_;
};

}  // namespace trireme
