// SPDX-License-Identifier: Apache-2.0
// Attention over a cache of any type and alignment: the plain kernel, for what flash.cu does not
// take (fp32 caches), and the choice between them.
//
// One cta of kWarps warps makes one (token, query head); its warps take the keys in turns, lane by
// lane over the channels; each keeps a running softmax (Milakov & Gimelshein 2018), and they are
// joined in warp order. Everything is fp32.
#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kChannelsOfLane = 16;  // head_dim is at most 32 times this

template <typename E>
__global__ void __launch_bounds__(kWarps* kWarp)
    plain_kernel(AttentionView view, int32_t sequences) {
  begin();
  const auto token = static_cast<int32_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  int32_t sequence = 0;  // the one that owns the token
  while (sequence < sequences && view.query_begin[sequence + 1] <= token) ++sequence;
  if (sequence == sequences || token < view.query_begin[sequence]) return;
  const int32_t position = view.context[sequence] - (view.query_begin[sequence + 1] - token);
  const int32_t kv_head =
      (view.heads.first_head + head) / view.heads.group - view.heads.first_kv_head;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const float* q = view.q + token * view.q_stride + int64_t{head} * view.head_dim;

  float sum[kChannelsOfLane] = {};
  float most = -INFINITY;
  float weight = 0;
  for (int32_t index = warp; index <= view.prefix + position; index += kWarps) {
    if (!view.sees(position, index)) continue;
    const E* key = view.row<E>(view.keys, view.prefix_keys, sequence, kv_head, index);
    float product = 0;
    for (int32_t d = lane; d < view.head_dim; d += kWarp) product += q[d] * to_float(key[d]);
    const float score = view.score(warp_sum(product));
    const float larger = fmaxf(most, score);
    const float factor = expf(most - larger);
    const float probability = expf(score - larger);
    most = larger;
    weight = weight * factor + probability;
    const E* value = view.row<E>(view.values, view.prefix_values, sequence, kv_head, index);
#pragma unroll
    for (int i = 0; i < kChannelsOfLane; ++i) {
      const int d = lane + i * kWarp;
      if (d < view.head_dim) sum[i] = sum[i] * factor + probability * to_float(value[d]);
    }
  }

  __shared__ float parts[kWarps][kChannelsOfLane * kWarp];
  __shared__ float scores[kWarps], weights[kWarps];
  for (int i = 0; i < kChannelsOfLane; ++i) parts[warp][lane + i * kWarp] = sum[i];
  if (lane == 0) {
    scores[warp] = most;
    weights[warp] = weight;
  }
  __syncthreads();
  float best = scores[0];
  for (int w = 1; w < kWarps; ++w) best = fmaxf(best, scores[w]);
  for (int32_t d = threadIdx.x; d < view.head_dim; d += kWarps * kWarp) {
    float y = 0;
    float total = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = expf(scores[w] - best);  // 0 for a warp that saw nothing
      y += parts[w][d] * factor;
      total += weights[w] * factor;
    }
    view.store(token, head, d, y / total);
  }
}

}  // namespace

int64_t attention_scratch_bytes(const BatchView& batch, int32_t prefix, int64_t num_heads,
                                int32_t head_dim) {
  return cuda_attention_scratch_bytes(batch.num_sequences, num_heads,
                                      int64_t{prefix} + batch.max_context, head_dim);
}

void attention(cudaStream_t stream, const AttentionArguments& arguments) {
  const KvLayer& kv = arguments.kv;
  const BatchView& batch = arguments.batch;
  const Tensor& q = arguments.q;
  const auto num_heads = static_cast<int32_t>(q.cols / kv.head_dim);
  const auto splits =
      static_cast<int32_t>(context_splits(int64_t{kv.prefix_length} + batch.max_context));
  const AttentionView view = {arguments.y.data,
                              arguments.y.dtype == DType::kBF16,
                              arguments.y.stride,
                              static_cast<const float*>(q.data),
                              q.stride,
                              kv.k,
                              kv.v,
                              kv.prefix_k,
                              kv.prefix_v,
                              kv.prefix_length,
                              kv.num_heads,
                              kv.block_size,
                              kv.head_dim,
                              num_heads,
                              arguments.heads,
                              arguments.spec,
                              batch.query_begin,
                              batch.context,
                              batch.block_tables,
                              batch.max_blocks,
                              arguments.partial,
                              splits};
  if (q.rows == 0 || num_heads == 0) return;
  if (flash_attention(stream, view, kv, batch)) return;
  const dim3 grid(static_cast<unsigned>(q.rows), static_cast<unsigned>(num_heads));
  const auto kernel = kv.dtype == DType::kBF16 ? plain_kernel<__nv_bfloat16> : plain_kernel<float>;
  launch(kernel, grid, kWarps * kWarp, 0, stream, view, batch.num_sequences);
}

}  // namespace trireme::cuda
