// SPDX-License-Identifier: Apache-2.0
// A micro-batch over a paged cache, for tests of attention.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "tests/kernels/fixture.h"

namespace trireme {

// A batch and its cache: sequences with the given contexts, of which the last `queries` tokens are
// in the micro-batch. Blocks are handed out in a scattered order; positions past the context hold
// NaN.
struct PagedBatch {
  PagedBatch(Backend& backend, DType dtype, int32_t kv_heads, int32_t head_dim, int32_t block_size,
             const std::vector<int32_t>& contexts, const std::vector<int32_t>& queries) {
    set_queries(contexts, queries);
    int32_t total = 0;
    for (const int32_t length : contexts) {
      const int32_t blocks = (length + block_size - 1) / block_size;
      view.max_blocks = std::max(view.max_blocks, blocks);
      total += blocks;
    }
    kv.dtype = dtype;
    kv.num_blocks = total + 2;
    kv.num_heads = kv_heads;
    kv.block_size = block_size;
    kv.head_dim = head_dim;
    const int64_t rows = int64_t{kv.num_blocks} * kv_heads * block_size;
    guard = head_dim % 8 == 0 ? 64 : 37;  // some kernels want rows of whole 16 bytes
    keys = std::make_unique<GuardedTensor>(backend, dtype, rows, head_dim, 0, guard);
    values = std::make_unique<GuardedTensor>(backend, dtype, rows, head_dim, 0, guard);
    kv.k = keys->view().data;
    kv.v = values->view().data;
    std::vector<int32_t> free_blocks;
    for (int32_t i = 0; i < kv.num_blocks; ++i) free_blocks.push_back(i);
    std::shuffle(free_blocks.begin(), free_blocks.end(), std::mt19937(7));
    tables.assign(contexts.size() * static_cast<size_t>(view.max_blocks), 0);
    std::mt19937 random(11);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (size_t s = 0; s < contexts.size(); ++s) {
      for (int32_t p = 0; p < contexts[s]; ++p) {
        auto* block =
            &tables[s * static_cast<size_t>(view.max_blocks) + static_cast<size_t>(p / block_size)];
        if (p % block_size == 0) {
          *block = free_blocks.back();
          free_blocks.pop_back();
        }
        for (int32_t h = 0; h < kv_heads; ++h) {
          const int64_t row = (int64_t{*block} * kv_heads + h) * block_size + p % block_size;
          for (int32_t d = 0; d < head_dim; ++d) {
            keys->set(row, d, 3 * uniform(random));
            values->set(row, d, uniform(random));
          }
        }
      }
    }
    view.block_tables = tables.data();
  }

  // Random learned keys and values before the cache.
  void set_prefix(Backend& backend, int32_t length, uint32_t seed) {
    prefix_keys = std::make_unique<GuardedTensor>(backend, kv.dtype, int64_t{kv.num_heads} * length,
                                                  kv.head_dim, 0, guard);
    prefix_values = std::make_unique<GuardedTensor>(
        backend, kv.dtype, int64_t{kv.num_heads} * length, kv.head_dim, 0, guard);
    prefix_keys->fill_random(seed, 3);
    prefix_values->fill_random(seed + 1);
    kv.prefix_k = prefix_keys->view().data;
    kv.prefix_v = prefix_values->view().data;
    kv.prefix_length = length;
  }

  void set_queries(const std::vector<int32_t>& contexts, const std::vector<int32_t>& queries) {
    context.assign(contexts.begin(), contexts.end());
    query_begin = {0};
    for (const int32_t count : queries) query_begin.push_back(query_begin.back() + count);
    view.num_tokens = query_begin.back();
    view.num_sequences = static_cast<int32_t>(contexts.size());
    view.max_queries = *std::max_element(queries.begin(), queries.end());
    view.max_context = *std::max_element(contexts.begin(), contexts.end());
    view.query_begin = query_begin.data();
    view.context = context.data();
  }

  int64_t guard = 0;
  KvLayer kv;
  BatchView view;
  Readable<int32_t> context;
  Readable<int32_t> query_begin;
  Readable<int32_t> tables;
  std::unique_ptr<GuardedTensor> keys;
  std::unique_ptr<GuardedTensor> values;
  std::unique_ptr<GuardedTensor> prefix_keys;
  std::unique_ptr<GuardedTensor> prefix_values;
};

}  // namespace trireme
