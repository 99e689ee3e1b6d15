// SPDX-License-Identifier: Apache-2.0
// One-row kernels of the operations that are not products; the backend runs them over rows.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace trireme::cpu {

// Pairs (x[first[i]], x[first[i] + distance]) of one head, rotated by the angles of one position.
struct RopeRow {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t pairs = 0;
  bool adjacent = false;
};

// y is of `type`, bf16 (rounded to nearest even) or fp32; everything else fp32.
struct RowKernels {
  // y = x / sqrt(mean(x²) + eps) · weight
  void (*rms_norm)(void* y, DType type, const float* x, const float* weight, int64_t n, float eps);
  // y = activation(gate) · up
  void (*silu_mul)(void* y, DType type, const float* gate, const float* up, int64_t n);
  void (*gelu_tanh_mul)(void* y, DType type, const float* gate, const float* up, int64_t n);
  void (*convert)(void* y, DType type, const float* x, int64_t n);
  // x += h
  void (*add)(float* x, const float* h, int64_t n);
  // x *= factor
  void (*scale)(float* x, float factor, int64_t n);
  // x = cap · tanh(x / cap)
  void (*soft_cap)(float* x, float cap, int64_t n);
  void (*rope)(float* head, const RopeRow& angles);
};

const RowKernels& row_kernels(Isa isa);

}  // namespace trireme::cpu
