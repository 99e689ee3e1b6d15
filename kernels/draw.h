// SPDX-License-Identifier: Apache-2.0
// What a backend is told of draws from logits, which worker/device_sampler.h asks for.
#pragma once

#include <cstdint>

namespace trireme {

// A draw from one row of logits; worker/sampler.h says how its numbers act together.
struct DrawRow {
  double temperature = 0;  // 0: the best
  double top_p = 1;
  double min_p = 0;
  double uniform = 0;  // in [0, 1): where in the kept sum the token lies
  int32_t top_k = 0;   // 0: off
  int32_t num_changes = 0;
  int32_t first_change = 0;
};

// Before that a score s of one id becomes s + bias, then s · factor where it is negative and
// s / factor where not, then s - less; or -inf. A row has at most one for an id.
struct ScoreChange {
  int32_t id = 0;
  int32_t banned = 0;
  double bias = 0;
  double factor = 1;
  double less = 0;
};

// In place of a drawn id.
constexpr int32_t kLogitsNotFinite = -1;
constexpr int32_t kNoTokenLeft = -2;

}  // namespace trireme
