// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numbers>
#include <vector>

#include "worker/model/decoder.h"

namespace trireme {
namespace {

// Frequency of pair `index` after scaling. llama3: wavelengths longer than the original context
// divided by low_freq_factor are stretched by `factor`, those shorter than by high_freq_factor are
// kept, the ones between are interpolated (Llama 3.1 model card).
double frequency(const RopeSpec& rope, int32_t index) {
  const double plain = std::pow(rope.base(), -2.0 * index / rope.rotary_dim());
  if (rope.scaling() == ROPE_SCALING_LINEAR) return plain / rope.factor();
  if (rope.scaling() != ROPE_SCALING_LLAMA3) return plain;
  const double turns = rope.original_context() * plain / (2 * std::numbers::pi);
  if (turns < rope.low_freq_factor()) return plain / rope.factor();
  if (turns > rope.high_freq_factor()) return plain;
  const double share =
      (turns - rope.low_freq_factor()) / (rope.high_freq_factor() - rope.low_freq_factor());
  return (1 - share) * plain / rope.factor() + share * plain;
}

}  // namespace

RopeTable make_rope_table(const RopeSpec& rope, int32_t num_positions, Backend& backend) {
  const int32_t half = rope.rotary_dim() / 2;
  const size_t count = static_cast<size_t>(num_positions) * static_cast<size_t>(half);
  std::vector<float> table(2 * count);
  std::vector<float> inverse(static_cast<size_t>(half));
  for (int32_t i = 0; i < half; ++i) {
    inverse[static_cast<size_t>(i)] = static_cast<float>(frequency(rope, i));
  }
  for (int32_t position = 0; position < num_positions; ++position) {
    for (int32_t i = 0; i < half; ++i) {
      // The angle is rounded to fp32 as the reference implementations round it.
      const float angle = static_cast<float>(position) * inverse[static_cast<size_t>(i)];
      const size_t at =
          static_cast<size_t>(position) * static_cast<size_t>(half) + static_cast<size_t>(i);
      table[at] = static_cast<float>(std::cos(double{angle}));
      table[count + at] = static_cast<float>(std::sin(double{angle}));
    }
  }
  RopeTable result;
  result.storage = backend.allocate(table.size() * sizeof(float));
  backend.upload(result.storage.data(), table.data(), table.size() * sizeof(float));
  result.cos = static_cast<const float*>(result.storage.data());
  result.sin = result.cos + count;
  result.num_positions = num_positions;
  result.rotary_dim = rope.rotary_dim();
  result.adjacent = rope.pairing() == ROPE_PAIRING_ADJACENT;
  return result;
}

}  // namespace trireme
