// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/vector_targets.h"

#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.inc"
#include "hwy/foreach_target.h"

namespace trireme::cpu {

const RowKernels& row_kernels(Isa isa) {
  return isa == Isa::kAvx2 ? N_AVX2::row_kernels() : N_AVX3::row_kernels();
}

}  // namespace trireme::cpu
