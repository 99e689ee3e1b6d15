// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/vector_targets.h"

#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_vector.inc"
#include "hwy/foreach_target.h"

namespace trireme::cpu {

PanelKernel vector_panel_kernel(Isa isa, DType weights) {
  return isa == Isa::kAvx2 ? N_AVX2::panel_kernel(weights) : N_AVX3::panel_kernel(weights);
}

}  // namespace trireme::cpu
