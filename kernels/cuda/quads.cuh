// SPDX-License-Identifier: Apache-2.0
// How operations on rows are divided. All are bound by memory: every element is read and written
// once. A cta of kThreads takes one row (grid.x, which may be 2^31 - 1) and, where rows are long, a
// part of its columns (grid.y). A thread takes four neighbouring columns at once, with one load and
// one store where all rows allow it (kAligned): else one by one, with the same bits. Sums are fp32.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {

constexpr int kThreads = 256;
constexpr int kQuad = 4;

// Of `items` for each row, one for a thread, which item_index() gives it.
inline dim3 grid_of(int64_t rows, int64_t items) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>((items + kThreads - 1) / kThreads), 1};
}
__device__ inline int32_t item_index() {
  return static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
}

inline int64_t quads_of(int64_t cols) { return (cols + kQuad - 1) / kQuad; }

inline bool empty(const Tensor& t) { return t.rows == 0 || t.cols == 0; }

// A row-major view in device code.
template <typename E>
struct View {
  E* data;
  int64_t stride;
  __device__ E* row(int64_t index) const { return data + index * stride; }
};

template <typename E>
View<E> view(const Tensor& t) {
  return {static_cast<E*>(t.data), t.stride};
}

// Neighbouring columns of a row.
struct Quad {
  float at[kQuad];
};

// The same in memory, and as what one instruction loads or stores.
template <typename E>
struct Stored {
  using Bits = std::conditional_t<sizeof(E) == 4, uint4, uint2>;
  E at[kQuad];
};

// Columns [j, j + 4) of a row of `cols`, and zeros beyond it.
template <bool kAligned, typename E>
__device__ Quad load_quad(const E* row, int32_t j, int32_t cols) {
  Quad quad = {};
  if constexpr (kAligned) {
    if (j >= cols) return quad;
    const auto bits = *reinterpret_cast<const typename Stored<E>::Bits*>(row + j);
    Stored<E> values;
    __builtin_memcpy(&values, &bits, sizeof(bits));
    for (int i = 0; i < kQuad; ++i) quad.at[i] = to_float(values.at[i]);
  } else {
    for (int i = 0; i < kQuad; ++i) {
      if (j + i < cols) quad.at[i] = to_float(row[j + i]);
    }
  }
  return quad;
}

template <bool kAligned, typename E>
__device__ void store_quad(E* row, int32_t j, int32_t cols, const Quad& quad) {
  if constexpr (kAligned) {
    if (j >= cols) return;
    Stored<E> values;
    for (int i = 0; i < kQuad; ++i) values.at[i] = from_float<E>(quad.at[i]);
    typename Stored<E>::Bits bits;
    __builtin_memcpy(&bits, &values, sizeof(bits));
    *reinterpret_cast<typename Stored<E>::Bits*>(row + j) = bits;
  } else {
    for (int i = 0; i < kQuad; ++i) {
      if (j + i < cols) row[j + i] = from_float<E>(quad.at[i]);
    }
  }
}

inline bool aligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<size_t>(kQuad * element_size(dtype)) == 0;
}
inline bool aligned(const Tensor& t) {
  return aligned(t.data, t.dtype) && t.stride % kQuad == 0 && t.cols % kQuad == 0;
}

// Calls fn with the constant that `all` is.
template <typename Function>
void with_alignment(bool all, const Function& fn) {
  if (all) return fn(std::true_type{});
  fn(std::false_type{});
}

// Calls fn with a value of the element type that a tensor of `dtype` has.
template <typename Function>
void with_type(DType dtype, const Function& fn) {
  switch (dtype) {
    case DType::kF32: return fn(float{});
    case DType::kBF16: return fn(__nv_bfloat16{});
    case DType::kF16: return fn(__half{});
    default: return;
  }
}

}  // namespace trireme::cuda
