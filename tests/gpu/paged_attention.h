// SPDX-License-Identifier: Apache-2.0
// The attention of one layer over a paged cache of random numbers, for benchmarks: queued by the
// backend, or handed to another's kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/gpu/device_speed.h"

namespace trireme {

// Sequences alike; of each the last `queries` tokens of `context` are in the micro-batch. The
// context is a multiple of the block's size.
struct AttentionShape {
  int32_t heads = 32, kv_heads = 2, head_dim = 128;  // ChatGLM3-6B's
  int32_t sequences = 1, queries = 1, context = 16;
  int32_t block_size = 16;

  int32_t tokens() const { return sequences * queries; }
  int64_t cols() const { return int64_t{heads} * head_dim; }
  int32_t blocks_of_sequence() const { return context / block_size; }
  // Of a layer's keys, and of its values.
  int64_t bytes_of_keys() const {
    return int64_t{2} * sequences * context * kv_heads * head_dim;  // bf16
  }
  float scale() const;
  // Of the products with keys and values that a token sees.
  double operations() const;
};

// How keys and values lie: [blocks, K, block_size, D] and a table of blocks, or [S, K, context, D].
// Both are looks at the same bytes, and so at other numbers.
enum class CacheLayout { kPaged, kContiguous };

// What one layer's attention reads and writes, in the device's memory.
struct AttentionOperands {
  const void* q = nullptr;  // [T, Q · D] bf16
  const void* k = nullptr;
  const void* v = nullptr;
  void* y = nullptr;                      // [T, Q · D] bf16
  const int32_t* block_tables = nullptr;  // [S, blocks_of_sequence]
  const int32_t* queries = nullptr;       // [S]
  const int32_t* context = nullptr;       // [S]
};

class PagedAttention {
 public:
  // A cache for each of `layers`: with enough of them none finds its keys in the GPU's cache. The
  // queries are the same ones for all: a step's come from the kernel before, and are in that cache.
  PagedAttention(Backend& backend, const Noise& noise, const AttentionShape& shape, int layers);

  int layers() const { return layers_; }
  void run(int layer);
  // For others; the same queries as bf16 and the same y.
  AttentionOperands operands(int layer) const;
  // Makes y no numbers, so that none is found that was not made after that.
  void clear();
  // ‖y - exact‖ / ‖exact‖ over some heads of some tokens, after the layer was the last one to run;
  // exact: sums in double over what lies in the cache.
  double error(int layer, CacheLayout layout);

 private:
  void make_batch();
  void make_queries();
  template <typename T>
  T* upload(const std::vector<T>& values);
  std::vector<double> exact(int32_t token, int32_t head, const std::vector<uint16_t>& keys,
                            const std::vector<uint16_t>& values) const;
  std::vector<uint16_t> rows_of(const std::byte* base, CacheLayout layout, int32_t sequence,
                                int32_t kv_head) const;
  std::byte* keys_of(int layer) const;

  Backend& backend_;
  const AttentionShape shape_;
  const int layers_;
  BatchView batch_;
  std::vector<int32_t> tables_;
  std::vector<uint16_t> queries_;
  Buffer cache_;  // of each layer its keys, then its values
  Buffer y_;
  std::vector<Buffer> arrays_;
  const int32_t* counts_ = nullptr;
  float* q_ = nullptr;
  uint16_t* narrow_q_ = nullptr;
};

}  // namespace trireme
