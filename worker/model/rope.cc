// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "worker/model/decoder.h"

namespace trireme {
namespace {

// The share of frequency `plain` that is kept; the rest is divided by `factor`. Wavelengths that
// make fewer than low_freq_factor turns in the original context keep nothing, those that make more
// than high_freq_factor all of it, the ones between a linear share of the turns (Llama 3.1).
double llama3_share(const RopeSpec& rope, double plain) {
  const double turns = rope.original_context() * plain / (2 * std::numbers::pi);
  const double share =
      (turns - rope.low_freq_factor()) / (rope.high_freq_factor() - rope.low_freq_factor());
  return std::clamp(share, 0.0, 1.0);
}

// The same, linear in the pair's index: all of it below the pair that makes beta_fast turns in the
// original context, nothing above that of beta_slow (Peng et al. 2023, 3.2).
double yarn_share(const RopeSpec& rope, int32_t index) {
  const auto pair_of = [&](double turns) {
    return rope.rotary_dim() * std::log(rope.original_context() / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rope.base()));
  };
  double first = pair_of(rope.beta_fast());
  double last = pair_of(rope.beta_slow());
  if (!rope.unrounded()) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, rope.rotary_dim() - 1.0);
  if (first == last) last += 0.001;  // no ramp has no width; the reference takes this one
  return 1 - std::clamp((index - first) / (last - first), 0.0, 1.0);
}

// Frequency of pair `index` after scaling.
double frequency(const RopeSpec& rope, int32_t index) {
  const double plain = std::pow(rope.base(), -2.0 * index / rope.rotary_dim());
  double share = 0;
  switch (rope.scaling()) {
    case ROPE_SCALING_LINEAR: break;
    case ROPE_SCALING_LLAMA3: share = llama3_share(rope, plain); break;
    case ROPE_SCALING_YARN: share = yarn_share(rope, index); break;
    default: return plain;
  }
  return (1 - share) * plain / rope.factor() + share * plain;
}

}  // namespace

RopeTable make_rope_table(const RopeSpec& rope, int32_t num_positions, Backend& backend) {
  const int32_t half = rope.rotary_dim() / 2;
  const size_t count = static_cast<size_t>(num_positions) * static_cast<size_t>(half);
  std::vector<float> table(2 * count);
  const double factor = rope.attention_factor() > 0 ? rope.attention_factor() : 1;
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
      table[at] = static_cast<float>(std::cos(double{angle}) * factor);
      table[count + at] = static_cast<float>(std::sin(double{angle}) * factor);
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
