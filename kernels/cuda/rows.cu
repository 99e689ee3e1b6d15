// SPDX-License-Identifier: Apache-2.0
// Operations on rows. All are bound by memory: every element is read and written once. A cta of
// kThreads takes one row (grid.x, which may be 2^31 - 1) and, where rows are long, a part of its
// columns (grid.y). A thread takes four neighbouring columns at once, with one load and one store
// where all rows allow it (kAligned): else one by one, with the same bits. Sums are fp32.
#include <type_traits>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kQuad = 4;

// Of `items` for each row, one for a thread, which item_index() gives it.
dim3 grid_of(int64_t rows, int64_t items) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>((items + kThreads - 1) / kThreads), 1};
}
__device__ int32_t item_index() {
  return static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
}

int64_t quads_of(int64_t cols) { return (cols + kQuad - 1) / kQuad; }

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

bool aligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<size_t>(kQuad * element_size(dtype)) == 0;
}
bool aligned(const Tensor& t) {
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

// y = x / sqrt(mean(x²) + eps) · weight of one row, by kLanes threads whose sums `sum_up` adds;
// with kAdd x += h comes first. What a thread has of a row of up to 16 · kLanes columns stays in
// registers: read once, all loads under way together. Weights are nobody's result: they are on
// their way while the kernel before this one ends. y may be x.
template <bool kAligned, bool kAdd, int kLanes, typename E, typename SumUp>
__device__ void norm_row(E* y, float* x, const float* h, const float* weight, int32_t cols,
                         float eps, int lane, const SumUp& sum_up) {
  constexpr int kHeld = 4;
  constexpr int kStep = kQuad * kLanes;
  const int first = kQuad * lane;
  const int rest = first + kHeld * kStep;
  Quad weights[kHeld];
  Quad values[kHeld];
#pragma unroll
  for (int q = 0; q < kHeld; ++q) {
    weights[q] = load_quad<kAligned>(weight, first + q * kStep, cols);
  }
  after_previous();
#pragma unroll
  for (int q = 0; q < kHeld; ++q) values[q] = load_quad<kAligned>(x, first + q * kStep, cols);
  const auto add = [&](Quad& value, const Quad& added, int32_t j) {
    for (int i = 0; i < kQuad; ++i) value.at[i] += added.at[i];
    store_quad<kAligned>(x, j, cols, value);
  };
  if constexpr (kAdd) {
    Quad added[kHeld];
#pragma unroll
    for (int q = 0; q < kHeld; ++q) added[q] = load_quad<kAligned>(h, first + q * kStep, cols);
#pragma unroll
    for (int q = 0; q < kHeld; ++q) add(values[q], added[q], first + q * kStep);
  }
  float squares = 0;
  const auto square = [&](const Quad& value) {
    for (int i = 0; i < kQuad; ++i) squares = fmaf(value.at[i], value.at[i], squares);
  };
#pragma unroll
  for (int q = 0; q < kHeld; ++q) square(values[q]);
#pragma unroll 1
  for (int32_t j = rest; j < cols; j += kStep) {
    Quad value = load_quad<kAligned>(x, j, cols);
    if constexpr (kAdd) add(value, load_quad<kAligned>(h, j, cols), j);
    square(value);
  }
  const float factor = rsqrtf(sum_up(squares) / static_cast<float>(cols) + eps);
  const auto finish = [&](Quad value, const Quad& by, int32_t j) {
    for (int i = 0; i < kQuad; ++i) value.at[i] = value.at[i] * factor * by.at[i];
    store_quad<kAligned>(y, j, cols, value);
  };
#pragma unroll
  for (int q = 0; q < kHeld; ++q) finish(values[q], weights[q], first + q * kStep);
#pragma unroll 1
  for (int32_t j = rest; j < cols; j += kStep) {
    finish(load_quad<kAligned>(x, j, cols), load_quad<kAligned>(weight, j, cols), j);
  }
}

constexpr int kNormThreads = 512;

// A cta a row. x [T, H] fp32, y [T, H] of E, weight [H] fp32: (4 + sizeof(E)) · H bytes a row and,
// with h [T, H] fp32 to be added, 8 · H more.
template <bool kAligned, bool kAdd, typename E>
__global__ void __launch_bounds__(kNormThreads)
    rms_norm_kernel(View<E> y, View<float> x, View<const float> h, const float* weight,
                    int32_t cols, float eps) {
  let_next_begin();
  const int64_t t = blockIdx.x;
  norm_row<kAligned, kAdd, kNormThreads>(y.row(t), x.row(t), h.row(t), weight, cols, eps,
                                         static_cast<int>(threadIdx.x),
                                         [](float part) { return cta_sum<kNormThreads>(part); });
}

// One warp a head: grid (T, ceil(heads / warps)).
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    rms_norm_heads_kernel(View<float> x, int32_t num_heads, int32_t head_dim, const float* weight,
                          float eps) {
  let_next_begin();
  const int32_t head = static_cast<int32_t>(blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp);
  if (head >= num_heads) return;
  float* const at = x.row(blockIdx.x) + int64_t{head} * head_dim;
  norm_row<kAligned, false, kWarp>(at, at, nullptr, weight, head_dim, eps,
                                   static_cast<int>(threadIdx.x % kWarp),
                                   [](float part) { return warp_sum(part); });
}

// A thread a pair.
__global__ void rope_kernel(View<float> x, int32_t num_heads, int32_t head_dim,
                            const int32_t* positions, const float* cosines, const float* sines,
                            int32_t pairs, bool adjacent) {
  begin();
  const int32_t index = item_index();
  if (index >= num_heads * pairs) return;
  const int32_t pair = index % pairs;
  float* head = x.row(blockIdx.x) + int64_t{index / pairs} * head_dim;
  float* first = head + (adjacent ? 2 * pair : pair);
  float* second = adjacent ? first + 1 : first + pairs;
  const float a = *first;
  const float b = *second;
  const int64_t angle = int64_t{positions[blockIdx.x]} * pairs + pair;
  const float cosine = cosines[angle];
  const float sine = sines[angle];
  *first = a * cosine - b * sine;
  *second = b * cosine + a * sine;
}

// The cache is [num_blocks, K, block_size, D]; a row of k or v is (head, channel). A thread four
// channels.
template <bool kAligned, typename E>
__global__ void store_kv_kernel(E* keys, E* values, View<const float> k, View<const float> v,
                                const int32_t* slots, int32_t num_heads, int32_t block_size,
                                int32_t head_dim) {
  begin();
  const int32_t quads = (head_dim + kQuad - 1) / kQuad;
  const int32_t head = item_index() / quads;
  const int32_t j = item_index() % quads * kQuad;
  if (head >= num_heads) return;
  const int32_t slot = slots[blockIdx.x];
  const int64_t from = int64_t{head} * head_dim;
  const Quad key = load_quad<kAligned>(k.row(blockIdx.x) + from, j, head_dim);
  const Quad value = load_quad<kAligned>(v.row(blockIdx.x) + from, j, head_dim);
  if (slot < 0) return;
  const int64_t row = int64_t{slot / block_size} * num_heads + head;
  const int64_t to = (row * block_size + slot % block_size) * head_dim;
  store_quad<kAligned>(keys + to, j, head_dim, key);
  store_quad<kAligned>(values + to, j, head_dim, value);
}

// An input of map(): elements of E as fp32; beyond its columns zeros.
template <typename E>
struct Source {
  const E* data;
  int64_t stride;
  int32_t cols;

  template <bool kAligned>
  __device__ Quad at(int64_t t, int32_t j) const {
    return load_quad<kAligned>(data + t * stride, j, cols);
  }
  bool in_quads() const {
    return reinterpret_cast<uintptr_t>(data) % (kQuad * sizeof(E)) == 0 && stride % kQuad == 0 &&
           cols % kQuad == 0;
  }
};

// Row t is the row ids[t] - first_row of `from`, or zeros if that has none.
template <typename E>
struct Picked {
  Source<E> from;
  int64_t rows;
  const int32_t* ids;
  int32_t first_row = 0;

  template <bool kAligned>
  __device__ Quad at(int64_t t, int32_t j) const {
    const int64_t row = int64_t{ids[t]} - first_row;
    return row < 0 || row >= rows ? Quad{} : from.template at<kAligned>(row, j);
  }
  bool in_quads() const { return from.in_quads(); }
};

template <typename E = float>
Source<E> source(const Tensor& t) {
  return {static_cast<const E*>(t.data), t.stride, static_cast<int32_t>(t.cols)};
}

template <typename Function, typename... Quads>
__device__ Quad each_of(const Function& fn, const Quads&... quads) {
  Quad result;
  for (int i = 0; i < kQuad; ++i) result.at[i] = fn(quads.at[i]...);
  return result;
}

// y[t, j] = fn(from[t, j]...); a thread four columns.
template <bool kAligned, typename E, typename Function, typename... From>
__global__ void map_kernel(View<E> y, int32_t cols, Function fn, From... from) {
  begin();
  const int64_t t = blockIdx.x;
  const int32_t j = kQuad * item_index();
  if (j >= cols) return;
  store_quad<kAligned>(y.row(t), j, cols, each_of(fn, from.template at<kAligned>(t, j)...));
}

template <typename E, typename Function, typename... From>
void map(cudaStream_t stream, const Tensor& y, Function fn, const From&... from) {
  if (empty(y)) return;
  with_alignment(aligned(y) && (from.in_quads() && ...), [&](auto all) {
    launch(map_kernel<decltype(all)::value, E, Function, From...>,
           grid_of(y.rows, quads_of(y.cols)), kThreads, 0, stream, view<E>(y), y.cols, fn, from...);
  });
}

// What map() is given, as types of their own, since nvcc takes no device lambda where a type is a
// parameter.
struct Same {
  __device__ float operator()(float x) const { return x; }
};

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

struct Scaled {
  float factor;
  __device__ float operator()(float x) const { return x * factor; }
};

struct SoftlyCapped {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
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

template <typename Activation>
struct Gated {
  Activation activation;
  __device__ float operator()(float gate, float up) const { return activation(gate) * up; }
};

}  // namespace

void embed(cudaStream_t stream, const Tensor& y, const int32_t* ids, const Weight& table,
           int64_t table_stride, int32_t first_row) {
  with_type(table.dtype, [&](auto element) {
    using E = decltype(element);
    const Source<E> rows = {static_cast<const E*>(table.storage.data()), table_stride,
                            static_cast<int32_t>(table.k)};
    map<float>(stream, y, Same{}, Picked<E>{rows, table.n, ids, first_row});
  });
}

namespace {

template <bool kAdd>
void launch_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const Tensor& h,
                 const float* weight, float eps) {
  if (empty(x)) return;
  const bool all =
      aligned(y) && aligned(x) && (!kAdd || aligned(h)) && aligned(weight, DType::kF32);
  with_type(y.dtype, [&](auto element) {
    using E = decltype(element);
    with_alignment(all, [&](auto whole) {
      launch(rms_norm_kernel<decltype(whole)::value, kAdd, E>, dim3(static_cast<unsigned>(x.rows)),
             kNormThreads, 0, stream, view<E>(y), view<float>(x), view<const float>(h), weight,
             x.cols, eps);
    });
  });
}

}  // namespace

void rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const float* weight,
              float eps) {
  launch_norm<false>(stream, y, x, {}, weight, eps);
}

void add_rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const Tensor& h,
                  const float* weight, float eps) {
  launch_norm<true>(stream, y, x, h, weight, eps);
}

void rms_norm_heads(cudaStream_t stream, const Tensor& x, int32_t num_heads, const float* weight,
                    float eps) {
  if (empty(x)) return;
  constexpr int kHeads = kThreads / kWarp;
  const int64_t head_dim = x.cols / num_heads;
  const dim3 grid(static_cast<unsigned>(x.rows),
                  static_cast<unsigned>((num_heads + kHeads - 1) / kHeads));
  with_alignment(aligned(x) && head_dim % kQuad == 0 && aligned(weight, DType::kF32),
                 [&](auto all) {
                   launch(rms_norm_heads_kernel<decltype(all)::value>, grid, kThreads, 0, stream,
                          view<float>(x), num_heads, head_dim, weight, eps);
                 });
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
  const bool all = aligned(k) && aligned(v) && aligned(kv.k, kv.dtype) && aligned(kv.v, kv.dtype) &&
                   kv.head_dim % kQuad == 0;
  with_type(kv.dtype, [&](auto element) {
    using E = decltype(element);
    with_alignment(all, [&](auto whole) {
      launch(store_kv_kernel<decltype(whole)::value, E>,
             grid_of(k.rows, kv.num_heads * quads_of(kv.head_dim)), kThreads, 0, stream,
             static_cast<E*>(kv.k), static_cast<E*>(kv.v), view<const float>(k),
             view<const float>(v), slots, kv.num_heads, kv.block_size, kv.head_dim);
    });
  });
}

void add(cudaStream_t stream, const Tensor& x, const Tensor& h) {
  map<float>(stream, x, Sum{}, source(x), source(h));
}

void scale(cudaStream_t stream, const Tensor& x, float factor) {
  map<float>(stream, x, Scaled{factor}, source(x));
}

void soft_cap(cudaStream_t stream, const Tensor& x, float cap) {
  map<float>(stream, x, SoftlyCapped{cap}, source(x));
}

void gated_activation(cudaStream_t stream, const Tensor& y, const Tensor& gate_up,
                      Backend::Activation activation) {
  const auto gate = source(gate_up.column_range(0, y.cols));
  const auto up = source(gate_up.column_range(y.cols, y.cols));
  with_type(y.dtype, [&](auto element) {
    using E = decltype(element);
    if (activation == Backend::Activation::kSilu) {
      map<E>(stream, y, Gated<Silu>{}, gate, up);
    } else {
      map<E>(stream, y, Gated<GeluTanh>{}, gate, up);
    }
  });
}

void gather_rows(cudaStream_t stream, const Tensor& y, const Tensor& x, const int32_t* rows) {
  map<float>(stream, y, Same{}, Picked<float>{source(x), x.rows, rows});
}

void convert(cudaStream_t stream, const Tensor& y, const Tensor& x) {
  with_type(y.dtype, [&](auto to) {
    with_type(x.dtype,
              [&](auto from) { map<decltype(to)>(stream, y, Same{}, source<decltype(from)>(x)); });
  });
}

void add_bias(cudaStream_t stream, const Tensor& y, const float* bias) {
  map<float>(stream, y, Sum{}, source(y), Source<float>{bias, 0, static_cast<int32_t>(y.cols)});
}

}  // namespace trireme::cuda
