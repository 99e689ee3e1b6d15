// SPDX-License-Identifier: Apache-2.0
// Operations on rows, as quads.cuh divides them.
#include "kernels/cuda/quads.cuh"

namespace trireme::cuda {
namespace {

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
