// SPDX-License-Identifier: Apache-2.0
// The instructions of tensor cores and of copies that run beside them, from sm_80 on (PTX ISA:
// cp.async, ldmatrix, mma.m16n8k16). The emulation in tests/support/cuda_emulation has a file of
// this name in its place.
#pragma once

#include <cstdint>

namespace trireme::cuda {

__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// 16 bytes from global to shared memory, or 16 zero bytes; `from` is not read then.
__device__ inline void copy_async(void* to, const void* from, bool present) {
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes));
}

// The copies since the last call are a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }

// Until all groups of this thread but the latest have arrived.
__device__ inline void wait_for_older_copies() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8i to 8i + 7 give the addresses
// of the rows of matrix i; r[i] holds two neighbours of it: row lane / 4, columns 2 (lane % 4) and
// the next.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at)));
}

// The same of the transposed matrices: rows 2 (lane % 4) and the next, column lane / 4.
__device__ inline void load_transposed(uint32_t (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at)));
}

// c [16, 8] fp32 += a [16, 16] · b [16, 8] of bf16. With g = lane / 4 and t = lane % 4 a lane
// holds:
//   a[0] row g, columns 2t and 2t + 1; a[1] row g + 8; a[2], a[3] the same rows, columns + 8
//   b0 rows 2t and 2t + 1 of column g; b1 rows + 8
//   c[0], c[1] row g, columns 2t and 2t + 1; c[2], c[3] row g + 8
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace trireme::cuda
