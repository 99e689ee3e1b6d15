// SPDX-License-Identifier: Apache-2.0
// The instructions of kernels/cuda/mma.cuh, whose comments say what they do, on the CPU.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {

inline void copy_async(void* to, const void* from, bool present) {
  emulation::copy_later(to, present ? from : nullptr, 16);
}
inline void commit_copies() { emulation::close_group(); }
inline void wait_for_older_copies() { emulation::wait_for_all_groups_but(1); }

namespace emulation {

inline const uint16_t* matrix_row(const std::byte* all, int matrix, int row) {
  const uint16_t* at;
  std::memcpy(&at, all + (8 * matrix + row) * kExchangeBytes, sizeof(at));
  return at;
}

inline float bf16_half(const std::byte* all, int lane, int word, int half) {
  uint16_t bits;
  std::memcpy(&bits, all + lane * kExchangeBytes + word * 4 + half * 2, sizeof(bits));
  uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

}  // namespace emulation

inline void load_matrices(uint32_t (&r)[4], const void* at) {
  const std::byte* all = emulation::exchange(&at, sizeof(at));
  const int row = emulation::lane() / 4;
  const int column = emulation::lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], emulation::matrix_row(all, i, row) + column, 4);
}

inline void load_transposed(uint32_t (&r)[4], const void* at) {
  const std::byte* all = emulation::exchange(&at, sizeof(at));
  const int column = emulation::lane() / 4;
  const int row = emulation::lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    r[i] = emulation::matrix_row(all, i, row)[column] |
           uint32_t{emulation::matrix_row(all, i, row + 1)[column]} << 16;
  }
}

inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const std::byte* all = emulation::exchange(words, sizeof(words));
  for (int i = 0; i < 4; ++i) {
    const int row = emulation::lane() / 4 + i / 2 * 8;
    const int column = emulation::lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int of_a = row % 8 * 4 + k % 8 / 2;
      const int of_b = column * 4 + k % 8 / 2;
      c[i] += emulation::bf16_half(all, of_a, row / 8 + k / 8 * 2, k % 2) *
              emulation::bf16_half(all, of_b, 4 + k / 8, k % 2);
    }
  }
}

}  // namespace trireme::cuda
