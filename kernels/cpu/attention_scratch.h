// SPDX-License-Identifier: Apache-2.0
// Where the parts of one attention item lie in a thread's scratch of attention_scratch_bytes().
// Rows are (token, head) pairs.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention.h"
#include "kernels/sizes.h"

namespace trireme::cpu {

struct AttentionScratch {
  // Values and sums are padded to this many columns, the widest register tile.
  static constexpr int64_t kColumnUnit = kAttentionColumns;

  float* q = nullptr;        // [rows, D], times the scale
  float* scores = nullptr;   // [rows, 64], then their exponentials
  float* sums = nullptr;     // [rows, width] of the values, weighted
  float* maximum = nullptr;  // [rows]
  float* total = nullptr;    // [rows] of the weights
  float* keys = nullptr;     // [D, 64]: transposed, so that 64 scores grow side by side
  float* values = nullptr;   // [64, width]
  float* staging = nullptr;  // [4, width]
  int64_t width = 0;

  AttentionScratch(float* memory, int64_t rows, int64_t head_dim)
      : width(round_up(head_dim, kColumnUnit)) {
    float** const parts[] = {&keys, &values, &staging, &q, &scores, &sums, &maximum, &total};
    const int64_t sizes[] = {width * kPositions, kPositions * width, 4 * width,
                             rows * width,       rows * kPositions,  rows * width,
                             round_up(rows, 16), round_up(rows, 16)};
    for (int i = 0; i < 8; ++i) {
      *parts[i] = memory;
      memory += sizes[i];
    }
  }
};

}  // namespace trireme::cpu
