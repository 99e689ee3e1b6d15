// SPDX-License-Identifier: Apache-2.0
// Operations on rows. All are bound by memory: every element is read and written once. A cta of
// kThreads takes one row (grid.x, which may be 2^31 - 1) and, where rows are long, a part of its
// columns (grid.y). Sums are fp32.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kColumnsOfCta = 4 * kThreads;

dim3 grid_of(int64_t rows, int64_t cols) {
  const int64_t parts = std::max<int64_t>(1, (cols + kColumnsOfCta - 1) / kColumnsOfCta);
  return {static_cast<unsigned>(rows), static_cast<unsigned>(std::min<int64_t>(parts, 65535)), 1};
}

bool empty(const Tensor& t) { return t.rows == 0 || t.cols == 0; }

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

template <typename E>
__global__ void embed_kernel(View<float> y, const int32_t* ids, View<const E> table, int64_t rows,
                             int32_t first_row, int64_t cols) {
  begin();
  const int64_t row = int64_t{ids[blockIdx.x]} - first_row;
  const bool here = row >= 0 && row < rows;
  float* to = y.row(blockIdx.x);
  for (int64_t j = blockIdx.y * kThreads + threadIdx.x; j < cols; j += gridDim.y * kThreads) {
    to[j] = here ? to_float(table.row(row)[j]) : 0.0f;
  }
}

template <typename E>
__global__ void rms_norm_kernel(View<E> y, View<const float> x, const float* weight, int64_t cols,
                                float eps) {
  begin();
  const float* from = x.row(blockIdx.x);
  float squares = 0;
  for (int64_t j = threadIdx.x; j < cols; j += kThreads) squares += from[j] * from[j];
  const float factor = rsqrtf(cta_sum<kThreads>(squares) / static_cast<float>(cols) + eps);
  E* to = y.row(blockIdx.x);
  for (int64_t j = threadIdx.x; j < cols; j += kThreads) {
    to[j] = from_float<E>(from[j] * factor * weight[j]);
  }
}

// One warp a head: grid (T, ceil(heads / warps)).
__global__ void rms_norm_heads_kernel(View<float> x, int32_t num_heads, int64_t head_dim,
                                      const float* weight, float eps) {
  begin();
  const int32_t head = static_cast<int32_t>(blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp);
  if (head >= num_heads) return;
  float* at = x.row(blockIdx.x) + head * head_dim;
  const int lane = threadIdx.x % kWarp;
  float squares = 0;
  for (int64_t j = lane; j < head_dim; j += kWarp) squares += at[j] * at[j];
  const float factor = rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
  for (int64_t j = lane; j < head_dim; j += kWarp) at[j] = at[j] * factor * weight[j];
}

__global__ void rope_kernel(View<float> x, int32_t num_heads, int64_t head_dim,
                            const int32_t* positions, const float* cosines, const float* sines,
                            int32_t pairs, bool adjacent) {
  begin();
  float* row = x.row(blockIdx.x);
  const int64_t angle = int64_t{positions[blockIdx.x]} * pairs;
  const int64_t count = int64_t{num_heads} * pairs;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < count; i += gridDim.y * kThreads) {
    const int64_t pair = i % pairs;
    float* head = row + i / pairs * head_dim;
    float* first = head + (adjacent ? 2 * pair : pair);
    float* second = adjacent ? first + 1 : first + pairs;
    const float cosine = cosines[angle + pair];
    const float sine = sines[angle + pair];
    const float a = *first;
    const float b = *second;
    *first = a * cosine - b * sine;
    *second = b * cosine + a * sine;
  }
}

// The cache is [num_blocks, K, block_size, D]; a column of k or v is (head, channel).
template <typename E>
__global__ void store_kv_kernel(E* keys, E* values, View<const float> k, View<const float> v,
                                const int32_t* slots, int32_t num_heads, int32_t block_size,
                                int32_t head_dim) {
  begin();
  const int64_t slot = slots[blockIdx.x];
  if (slot < 0) return;
  const int64_t block = slot / block_size;
  const int64_t offset = slot % block_size;
  const int64_t cols = int64_t{num_heads} * head_dim;
  for (int64_t j = blockIdx.y * kThreads + threadIdx.x; j < cols; j += gridDim.y * kThreads) {
    const int64_t head = j / head_dim;
    const int64_t to = ((block * num_heads + head) * block_size + offset) * head_dim + j % head_dim;
    keys[to] = from_float<E>(k.row(blockIdx.x)[j]);
    values[to] = from_float<E>(v.row(blockIdx.x)[j]);
  }
}

// y[t, j] = fn(t, j)
template <typename E, typename Function>
__global__ void map_kernel(View<E> y, int64_t cols, Function fn) {
  begin();
  E* to = y.row(blockIdx.x);
  for (int64_t j = blockIdx.y * kThreads + threadIdx.x; j < cols; j += gridDim.y * kThreads) {
    to[j] = from_float<E>(fn(static_cast<int64_t>(blockIdx.x), j));
  }
}

template <typename E, typename Function>
void map(cudaStream_t stream, const Tensor& y, Function fn) {
  if (empty(y)) return;
  launch(map_kernel<E, Function>, grid_of(y.rows, y.cols), kThreads, 0, stream, view<E>(y), y.cols,
         fn);
}

// What map() is given: values at (t, j), as types of their own, since nvcc takes no device lambda
// where a type is a parameter.
struct Sum {
  View<const float> a, b;
  __device__ float operator()(int64_t t, int64_t j) const { return a.row(t)[j] + b.row(t)[j]; }
};

struct Scaled {
  View<const float> x;
  float factor;
  __device__ float operator()(int64_t t, int64_t j) const { return x.row(t)[j] * factor; }
};

struct SoftlyCapped {
  View<const float> x;
  float cap;
  __device__ float operator()(int64_t t, int64_t j) const { return cap * tanhf(x.row(t)[j] / cap); }
};

struct Biased {
  View<const float> x;
  const float* bias;
  __device__ float operator()(int64_t t, int64_t j) const { return x.row(t)[j] + bias[j]; }
};

struct Gathered {
  View<const float> x;
  const int32_t* rows;
  __device__ float operator()(int64_t t, int64_t j) const { return x.row(rows[t])[j]; }
};

template <typename E>
struct Converted {
  View<const E> x;
  int64_t cols;
  __device__ float operator()(int64_t t, int64_t j) const {
    return j < cols ? to_float(x.row(t)[j]) : 0.0f;
  }
};

struct Silu {
  __device__ float operator()(float x) const { return x / (1.0f + expf(-x)); }
};

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which does not cancel where tanh(u) is near -1.
struct GeluTanh {
  __device__ float operator()(float x) const {
    constexpr float kTwiceRootOfTwoOverPi = 1.5957691216057308f;
    return x / (1.0f + expf(-kTwiceRootOfTwoOverPi * (x + 0.044715f * x * x * x)));
  }
};

template <typename Function>
struct Gated {
  View<const float> gate_up;
  int64_t cols;
  Function activation;
  __device__ float operator()(int64_t t, int64_t j) const {
    return activation(gate_up.row(t)[j]) * gate_up.row(t)[cols + j];
  }
};

}  // namespace

void embed(cudaStream_t stream, const Tensor& y, const int32_t* ids, const Weight& table,
           int64_t table_stride, int32_t first_row) {
  if (empty(y)) return;
  with_type(table.dtype, [&](auto element) {
    using E = decltype(element);
    const View<const E> rows = {static_cast<const E*>(table.storage.data()), table_stride};
    launch(embed_kernel<E>, grid_of(y.rows, y.cols), kThreads, 0, stream, view<float>(y), ids, rows,
           table.n, first_row, y.cols);
  });
}

void rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const float* weight,
              float eps) {
  if (empty(x)) return;
  with_type(y.dtype, [&](auto element) {
    using E = decltype(element);
    launch(rms_norm_kernel<E>, dim3(static_cast<unsigned>(x.rows)), kThreads, 0, stream, view<E>(y),
           view<const float>(x), weight, x.cols, eps);
  });
}

void rms_norm_heads(cudaStream_t stream, const Tensor& x, int32_t num_heads, const float* weight,
                    float eps) {
  if (empty(x)) return;
  constexpr int kHeads = kThreads / kWarp;
  const dim3 grid(static_cast<unsigned>(x.rows),
                  static_cast<unsigned>((num_heads + kHeads - 1) / kHeads));
  launch(rms_norm_heads_kernel, grid, kThreads, 0, stream, view<float>(x), num_heads,
         x.cols / num_heads, weight, eps);
}

void rope(cudaStream_t stream, const Tensor& x, int32_t num_heads, const int32_t* positions,
          const RopeTable& table) {
  const int32_t pairs = table.rotary_dim / 2;
  if (empty(x) || pairs == 0) return;
  launch(rope_kernel, grid_of(x.rows, int64_t{num_heads} * pairs), kThreads, 0, stream,
         view<float>(x), num_heads, x.cols / num_heads, positions, table.cos, table.sin, pairs,
         table.adjacent);
}

void store_kv(cudaStream_t stream, const KvLayer& kv, const Tensor& k, const Tensor& v,
              const int32_t* slots) {
  if (empty(k)) return;
  with_type(kv.dtype, [&](auto element) {
    using E = decltype(element);
    launch(store_kv_kernel<E>, grid_of(k.rows, k.cols), kThreads, 0, stream, static_cast<E*>(kv.k),
           static_cast<E*>(kv.v), view<const float>(k), view<const float>(v), slots, kv.num_heads,
           kv.block_size, kv.head_dim);
  });
}

void add(cudaStream_t stream, const Tensor& x, const Tensor& h) {
  map<float>(stream, x, Sum{view<const float>(x), view<const float>(h)});
}

void scale(cudaStream_t stream, const Tensor& x, float factor) {
  map<float>(stream, x, Scaled{view<const float>(x), factor});
}

void soft_cap(cudaStream_t stream, const Tensor& x, float cap) {
  map<float>(stream, x, SoftlyCapped{view<const float>(x), cap});
}

void gated_activation(cudaStream_t stream, const Tensor& y, const Tensor& gate_up,
                      Backend::Activation activation) {
  const auto x = view<const float>(gate_up);
  with_type(y.dtype, [&](auto element) {
    using E = decltype(element);
    if (activation == Backend::Activation::kSilu) {
      map<E>(stream, y, Gated<Silu>{x, y.cols, {}});
    } else {
      map<E>(stream, y, Gated<GeluTanh>{x, y.cols, {}});
    }
  });
}

void gather_rows(cudaStream_t stream, const Tensor& y, const Tensor& x, const int32_t* rows) {
  map<float>(stream, y, Gathered{view<const float>(x), rows});
}

void convert(cudaStream_t stream, const Tensor& y, const Tensor& x) {
  with_type(y.dtype, [&](auto to) {
    with_type(x.dtype, [&](auto from) {
      using From = decltype(from);
      map<decltype(to)>(stream, y, Converted<From>{view<const From>(x), x.cols});
    });
  });
}

void add_bias(cudaStream_t stream, const Tensor& y, const float* bias) {
  map<float>(stream, y, Biased{view<const float>(y), bias});
}

}  // namespace trireme::cuda
