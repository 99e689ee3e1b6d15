// SPDX-License-Identifier: Apache-2.0
// What both attention kernels know of their arguments in device code.
//
// Keys are counted by an index: the prefix first, [0, prefix), then the positions of the sequence,
// [prefix, prefix + context). A row is a pair (token, query head of one KV head): the heads that
// share a KV head lie beside each other, so one read of its keys serves them all.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {

struct AttentionView {
  void* y;
  bool y_is_bf16;
  int64_t y_stride;
  const float* q;
  int64_t q_stride;
  const void* keys;  // [num_blocks, K, block_size, D] of E
  const void* values;
  const void* prefix_keys;  // [K, prefix, D] of E
  const void* prefix_values;
  int32_t prefix;
  int32_t num_kv_heads;
  int32_t block_size;
  int32_t head_dim;
  int32_t num_heads;
  HeadMap heads;
  AttentionSpec spec;
  const int32_t* query_begin;
  const int32_t* context;
  const int32_t* block_tables;
  int32_t max_blocks;
  float* partial;  // of split sequences: [S, Q, num_splits, D + 2]: the sum, its largest score, its
                   // weight
  int32_t num_splits;

  // Local query heads [begin, end) of a local KV head.
  __device__ int32_t heads_begin(int32_t kv_head) const {
    const int32_t first = (heads.first_kv_head + kv_head) * heads.group - heads.first_head;
    return first > 0 ? first : 0;
  }
  __device__ int32_t heads_end(int32_t kv_head) const {
    const int32_t end = (heads.first_kv_head + kv_head + 1) * heads.group - heads.first_head;
    return end < num_heads ? end : num_heads;
  }

  // Where the key or value of an index stands, in elements from the start of its array.
  __device__ int64_t cache_row(int32_t sequence, int32_t kv_head, int32_t position) const {
    const int64_t block = block_tables[int64_t{sequence} * max_blocks + position / block_size];
    return ((block * num_kv_heads + kv_head) * block_size + position % block_size) * head_dim;
  }
  template <typename E>
  __device__ const E* row(const void* cache, const void* before, int32_t sequence, int32_t kv_head,
                          int32_t index) const {
    if (index < prefix) {
      return static_cast<const E*>(before) + (int64_t{kv_head} * prefix + index) * head_dim;
    }
    return static_cast<const E*>(cache) + cache_row(sequence, kv_head, index - prefix);
  }

  // Whether a token at `position` sees the key of this index.
  __device__ bool sees(int32_t position, int32_t index) const {
    if (index < prefix) return true;
    const int32_t at = index - prefix;
    return at <= position && (spec.window == 0 || at > position - spec.window);
  }

  __device__ float score(float product) const {
    const float scaled = product * spec.scale;
    return spec.softcap > 0 ? spec.softcap * tanhf(scaled / spec.softcap) : scaled;
  }

  __device__ void store(int64_t token, int32_t head, int32_t channel, float value) const {
    const int64_t at = token * y_stride + int64_t{head} * head_dim + channel;
    if (y_is_bf16) {
      static_cast<__nv_bfloat16*>(y)[at] = __float2bfloat16_rn(value);
    } else {
      static_cast<float*>(y)[at] = value;
    }
  }

  __device__ float* part(int32_t sequence, int32_t head, int32_t split) const {
    return partial + ((int64_t{sequence} * num_heads + head) * num_splits + split) * (head_dim + 2);
  }
};

// flash.cu. False, and nothing queued, where the cache is not its: bf16 rows of 16-byte pieces, D
// at most 256.
bool flash_attention(cudaStream_t stream, const AttentionView& view, const KvLayer& kv,
                     const BatchView& batch);

}  // namespace trireme::cuda
