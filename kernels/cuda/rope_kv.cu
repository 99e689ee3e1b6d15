// SPDX-License-Identifier: Apache-2.0
// Rotary positions (Su et al. 2021), and keys and values on their way into the paged cache.
#include "kernels/cuda/quads.cuh"

namespace trireme::cuda {
namespace {

// The angles of a row of x.
struct Rotation {
  const int32_t* positions;
  const float* cosines;  // [positions, pairs]
  const float* sines;
  int32_t pairs;
  bool adjacent;  // (2i, 2i + 1); else (i, i + pairs)

  __device__ int64_t row(int64_t t) const { return int64_t{positions[t]} * pairs; }
};

Rotation rotation_of(const int32_t* positions, const RopeTable& table) {
  return {positions, table.cos, table.sin, table.rotary_dim / 2, table.adjacent};
}

__device__ void rotate(float& first, float& second, float cosine, float sine) {
  const float a = first;
  const float b = second;
  first = fmaf(a, cosine, -(b * sine));
  second = fmaf(b, cosine, a * sine);
}

// The cache is [num_blocks, K, block_size, D].
struct KvShape {
  int32_t num_heads, block_size, head_dim;

  __device__ int64_t row(int32_t slot, int32_t head) const {
    const int64_t of_head = int64_t{slot / block_size} * num_heads + head;
    return (of_head * block_size + slot % block_size) * head_dim;
  }
};

KvShape shape_of(const KvLayer& kv) { return {kv.num_heads, kv.block_size, kv.head_dim}; }

// A thread a pair.
__global__ void rope_kernel(View<float> x, int32_t num_heads, int32_t head_dim, Rotation rotation) {
  begin();
  const int32_t index = item_index();
  if (index >= num_heads * rotation.pairs) return;
  const int32_t pair = index % rotation.pairs;
  float* head = x.row(blockIdx.x) + int64_t{index / rotation.pairs} * head_dim;
  float* first = head + (rotation.adjacent ? 2 * pair : pair);
  float* second = rotation.adjacent ? first + 1 : first + rotation.pairs;
  const int64_t angle = rotation.row(blockIdx.x) + pair;
  rotate(*first, *second, rotation.cosines[angle], rotation.sines[angle]);
}

// A row of k or v is (head, channel). A thread four channels.
template <bool kAligned, typename E>
__global__ void store_kv_kernel(E* keys, E* values, View<const float> k, View<const float> v,
                                const int32_t* slots, KvShape shape) {
  begin();
  const int32_t quads = (shape.head_dim + kQuad - 1) / kQuad;
  const int32_t head = item_index() / quads;
  const int32_t j = item_index() % quads * kQuad;
  if (head >= shape.num_heads) return;
  const int32_t slot = slots[blockIdx.x];
  const int64_t from = int64_t{head} * shape.head_dim;
  const Quad key = load_quad<kAligned>(k.row(blockIdx.x) + from, j, shape.head_dim);
  const Quad value = load_quad<kAligned>(v.row(blockIdx.x) + from, j, shape.head_dim);
  if (slot < 0) return;
  const int64_t to = shape.row(slot, head);
  store_quad<kAligned>(keys + to, j, shape.head_dim, key);
  store_quad<kAligned>(values + to, j, shape.head_dim, value);
}

// rope_kernel of the heads of q and k and store_kv_kernel: a row is (head, channel) of Q query
// heads, K of k and K of v; a thread four channels and, where they are the first of pairs of
// (i, i + pairs), the four second ones. k goes to the cache only.
template <typename E>
__global__ void rope_store_kv_kernel(View<float> x, int32_t query_heads, E* keys, E* values,
                                     KvShape shape, Rotation rotation, const int32_t* slots) {
  begin();
  const int32_t quads = shape.head_dim / kQuad;
  const int32_t head = item_index() / quads;
  const int32_t j = item_index() % quads * kQuad;
  if (head >= query_heads + 2 * shape.num_heads) return;
  float* const row = x.row(blockIdx.x) + int64_t{head} * shape.head_dim;
  const bool query = head < query_heads;
  const bool rotates = head < query_heads + shape.num_heads && j < 2 * rotation.pairs;
  const bool halves = rotates && !rotation.adjacent;
  if ((query && !rotates) || (halves && j >= rotation.pairs)) return;  // no work; another thread's
  Quad low = load_quad<true>(row, j, shape.head_dim);
  Quad high = {};
  const float* const cosines = rotation.cosines + rotation.row(blockIdx.x);
  const float* const sines = rotation.sines + rotation.row(blockIdx.x);
  if (halves) {
    high = load_quad<true>(row, j + rotation.pairs, shape.head_dim);
    for (int i = 0; i < kQuad; ++i) rotate(low.at[i], high.at[i], cosines[j + i], sines[j + i]);
  } else if (rotates) {
    for (int i = 0; i < kQuad; i += 2) {
      rotate(low.at[i], low.at[i + 1], cosines[(j + i) / 2], sines[(j + i) / 2]);
    }
  }
  if (query) {
    store_quad<true>(row, j, shape.head_dim, low);
    if (halves) store_quad<true>(row, j + rotation.pairs, shape.head_dim, high);
    return;
  }
  const int32_t slot = slots[blockIdx.x];
  if (slot < 0) return;
  const bool key = head < query_heads + shape.num_heads;
  const int32_t kv_head = head - query_heads - (key ? 0 : shape.num_heads);
  E* const to = (key ? keys : values) + shape.row(slot, kv_head);
  store_quad<true>(to, j, shape.head_dim, low);
  if (halves) store_quad<true>(to, j + rotation.pairs, shape.head_dim, high);
}

}  // namespace

void rope(cudaStream_t stream, const Tensor& x, int32_t num_heads, const int32_t* positions,
          const RopeTable& table) {
  const int32_t pairs = table.rotary_dim / 2;
  if (empty(x) || pairs == 0) return;
  launch(rope_kernel, grid_of(x.rows, int64_t{num_heads} * pairs), kThreads, 0, stream,
         view<float>(x), num_heads, x.cols / num_heads, rotation_of(positions, table));
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
             view<const float>(v), slots, shape_of(kv));
    });
  });
}

bool rope_store_kv(cudaStream_t stream, const Tensor& qkv, const KvLayer& kv,
                   const int32_t* positions, const RopeTable& table, const int32_t* slots) {
  const int32_t pairs = table.rotary_dim / 2;
  if (!aligned(qkv) || !aligned(kv.k, kv.dtype) || !aligned(kv.v, kv.dtype) ||
      kv.head_dim % kQuad != 0 || (table.adjacent ? 2 : 1) * pairs % kQuad != 0) {
    return false;
  }
  if (empty(qkv)) return true;
  const auto heads = static_cast<int32_t>(qkv.cols / kv.head_dim);
  with_type(kv.dtype, [&](auto element) {
    using E = decltype(element);
    launch(rope_store_kv_kernel<E>, grid_of(qkv.rows, heads * quads_of(kv.head_dim)), kThreads, 0,
           stream, view<float>(qkv), heads - 2 * kv.num_heads, static_cast<E*>(kv.k),
           static_cast<E*>(kv.v), shape_of(kv), rotation_of(positions, table), slots);
  });
  return true;
}

}  // namespace trireme::cuda
