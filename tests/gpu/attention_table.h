// SPDX-License-Identifier: Apache-2.0
// Our attention beside another's on one shape, as a line of a table.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/support/bars.h"

namespace trireme {

// Whose seconds there are, and why there are none.
struct TimedAttention {
  std::vector<double> seconds;  // a round's, of one call
  std::string missing;          // the reason, where there are none
  double error = 0;             // from the exact result, of its norm

  bool measured() const { return !seconds.empty(); }
  double us() const { return 1e6 * median(seconds); }
};

struct AttentionRow {
  std::string shape;
  double bytes = 0, operations = 0;  // of one call
  TimedAttention ours, paged, contiguous;

  // Times that differ by less are the same: rounds of one program differ as much.
  static constexpr double kAlike = 0.03;
  // What bf16 allows.
  static constexpr double kMostError = 1e-2;

  bool right(const TimedAttention& timed) const { return timed.error <= kMostError; }
  bool right() const { return right(ours) && right(paged) && right(contiguous); }

  // Of those that read a cache of blocks, which is what the engine has; a wrong result wins
  // nothing.
  std::string winner() const {
    if (!right(ours)) return "none: ours is wrong";
    if (!paged.measured()) return "ours: cuDNN has none";
    if (!right(paged)) return "ours: cuDNN is wrong";
    const double ratio = ours.us() / paged.us();
    if (ratio > 1 + kAlike) return "cuDNN";
    return ratio < 1 - kAlike ? "ours" : "alike";
  }

  static std::string head() {
    return "| shape | ours us | TB/s | TFLOP/s | cuDNN, our blocks us | cuDNN, contiguous us | "
           "ours / cuDNN | winner |";
  }
  std::string line() const {
    const auto number = [](const char* format, double value) {
      char text[32];
      std::snprintf(text, sizeof(text), format, value);
      return std::string(text);
    };
    const auto time = [&](const TimedAttention& timed) {
      if (!timed.measured()) return std::string("none");
      return number("%.1f", timed.us()) + (right(timed) ? "" : " WRONG");
    };
    const double us = ours.us();
    const std::string ratio = paged.measured() ? number("%.2f", us / paged.us()) : "-";
    return "| " + shape + " | " + time(ours) + " | " + number("%.2f", bytes / us * 1e-6) + " | " +
           number("%.0f", operations / us * 1e-6) + " | " + time(paged) + " | " + time(contiguous) +
           " | " + ratio + " | " + winner() + " |";
  }
};

}  // namespace trireme
