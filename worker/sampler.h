// SPDX-License-Identifier: Apache-2.0
// Logits to a token. A draw is a function of (request seed, position) and the logits alone: neither
// the batch nor the split nor the clock enters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "proto/micro_batch.pb.h"

namespace trireme {

class Sampler {
 public:
  // Ids from logical_vocab_size on are padding rows: never drawn.
  explicit Sampler(int32_t logical_vocab_size) : logical_vocab_size_(logical_vocab_size) {}

  // Draws from softmax(logits / temperature), cut to the top_k best, then to the smallest set whose
  // probability reaches top_p; temperature 0 takes the best. Ties go to the lower id. position: of
  // the token drawn. Fills token and logprobs of the result (of the raw logits of all rows, in
  // double). Throws kInternal if the logits are not finite.
  void draw(std::span<const float> logits, const DrawSpec& spec, int32_t position,
            SampledToken& result);

 private:
  int32_t pick(std::span<const float> logits, const DrawSpec& spec, int32_t position);

  int32_t logical_vocab_size_;
  // Scratch that keeps its capacity.
  std::vector<int32_t> order_;
};

// Uniform in [0, 1), the same for the same arguments everywhere.
double uniform_draw(uint64_t seed, int32_t position);

}  // namespace trireme
