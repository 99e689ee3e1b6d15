// SPDX-License-Identifier: Apache-2.0
// Logits to a token. A draw is a function of (request seed, position), the logits and the ids
// before it alone: neither the batch nor the split nor the clock enters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "proto/micro_batch.pb.h"

namespace trireme {

// Whether its draws need the ids that came before.
bool has_penalties(const DrawSpec& spec);

// All in double. Score s of id i, in the order of transformers' processors (penalties of the output
// as OpenAI and vLLM define them), where c = how often i stands in the output:
//   s  = logit + bias
//   s  = s < 0 ? s * r : s / r          repetition_penalty r, i in prompt or output
//   s -= frequency_penalty * c, and presence_penalty where c > 0
//   s  = -inf                           banned
//   temperature T = 0: the best, the lowest id of equals; else w = exp((s - best) / T)
//   top_k: those below the k-th best go; its equals stay, so it may be more than k
//   top_p: the best stay until their share of what is left reaches p; of equals, lower ids first
//   min_p: those with w < min_p go
// The token is where uniform_draw() of the kept sum falls, in the order of ids.
class Sampler {
 public:
  // Ids from logical_vocab_size on are padding rows: never drawn.
  explicit Sampler(int32_t logical_vocab_size) : logical_vocab_size_(logical_vocab_size) {}

  // position: of the token drawn. history: the ids at positions [0, position), each a row of
  // `logits`; not looked at without penalties. Fills the token, and, where asked for, logprobs
  // (of the raw logits of all rows). Throws kInternal if the logits are not finite (-inf is
  // allowed) or none is left, kInvalidArgument for a spec that no service sends.
  void draw(std::span<const float> logits, const DrawSpec& spec, int32_t position,
            std::span<const int32_t> history, SampledToken& result);

  // Fills logprobs as draw() does: of the `count` best, and of the token that the result has.
  void report(std::span<const float> logits, int32_t count, SampledToken& result);

  // What is left to draw from, in the order of ids, until the next call; weights are in proportion
  // to probabilities. draw() is this and a choice.
  struct Candidate {
    double weight = 0;
    int32_t id = 0;
  };
  std::span<const Candidate> candidates(std::span<const float> logits, const DrawSpec& spec,
                                        std::span<const int32_t> history);

 private:
  void load(std::span<const float> logits);
  void adjust(const DrawSpec& spec, std::span<const int32_t> history);
  void penalise(const DrawSpec& spec, std::span<const int32_t> history);
  void keep(const DrawSpec& spec);
  void keep_nucleus(double top_p);

  int32_t logical_vocab_size_;
  // Scratch that keeps its capacity.
  std::vector<double> scores_;
  std::vector<int32_t> counts_;  // of each id; all zero between draws
  std::vector<double> best_, masses_;
  std::vector<Candidate> candidates_, heads_;
  std::vector<int32_t> order_;
};

// Throws kInvalidArgument for a spec that no service sends; draws rely on the rest. rows: of the
// logits.
void check_draw(const DrawSpec& spec, size_t rows);

// Uniform in [0, 1), the same for the same arguments everywhere.
double uniform_draw(uint64_t seed, int32_t position);

// The seed of one of the n answers to a request: answer 0 draws as if it were the only one.
uint64_t seed_of_answer(uint64_t seed, int32_t index);

}  // namespace trireme
