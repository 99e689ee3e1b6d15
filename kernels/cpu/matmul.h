// SPDX-License-Identifier: Apache-2.0
// y = x · wᵀ + bias on packed weights.
//
// The driver (matmul.cc) splits the work and hands kernels one panel of 32 weight rows at a time; a
// kernel adds the products of one range of k to y. Every y element is one chain of fp32 additions
// in ascending k that begins with the bias, and y itself carries it exactly from one range of k to
// the next. So neither the blocking, nor the threads, nor the other rows can change a result.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/base/team.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"

namespace trireme::cpu {

// y[r, 0..32) += Σ_k x[r, k] · w[k, 0..32) for one panel and `depth` values of k.
struct PanelArgs {
  const void* x = nullptr;  // [rows, depth] of the kernel's x type
  int64_t x_stride = 0;     // elements from one row to the next
  int64_t rows = 0;
  const void* w = nullptr;       // packed as sizes.h says
  const void* next_w = nullptr;  // what the next call reads: may be fetched meanwhile
  int64_t depth = 0;             // a multiple of kPanelDepth; x and w are zero beyond K
  float* y = nullptr;            // [rows, 32]
  int64_t y_stride = 0;
};

using PanelKernel = void (*)(const PanelArgs& args);

// AVX2 or AVX-512 with fp32 products: fp32 weights, bf16 and fp16 widened in registers. x is fp32.
PanelKernel vector_panel_kernel(Isa isa, DType weights);
// bf16 products of pairs of k (VDPBF16PS). x is bf16.
void panel_avx512_bf16(const PanelArgs& args);
// The same on tiles of 16 x 16 (TDPBF16PS).
void panel_amx(const PanelArgs& args);

// Shapes and types are checked by the caller; scratch holds matmul_scratch_bytes() per thread.
void matmul(Isa isa, Team& team, const Workspace& scratch, const Tensor& y, const Tensor& x,
            const Weight& w, const float* bias);

}  // namespace trireme::cpu
