// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/base/team.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/vector_targets.h"

#define HWY_TARGET_INCLUDE "kernels/cpu/attention.inc"
#include "hwy/foreach_target.h"

namespace trireme::cpu {
namespace {

// Rows of an item if the tokens allow: enough to hide the widening of a block of keys, few enough
// for all scratch to stay in the second-level cache.
constexpr int32_t kItemRows = kAttentionRows;

// Local query heads [begin, end) that read one local KV head.
struct HeadRange {
  int32_t begin = 0;
  int32_t end = 0;
};

HeadRange heads_of(int32_t kv_head, int32_t num_heads, const HeadMap& map) {
  const int32_t first = (map.first_kv_head + kv_head) * map.group - map.first_head;
  return {std::clamp(first, 0, num_heads), std::clamp(first + map.group, 0, num_heads)};
}

void cut_into_ranges(const BatchView& batch, int32_t tokens_per_item,
                     std::vector<TokenRange>& ranges) {
  ranges.clear();
  for (int32_t s = 0; s < batch.num_sequences; ++s) {
    const int32_t begin = batch.query_begin[s];
    const int32_t end = batch.query_begin[s + 1];
    const int32_t first_position = batch.context[s] - (end - begin);
    for (int32_t token = begin; token < end; token += tokens_per_item) {
      ranges.push_back(
          {s, token, std::min(tokens_per_item, end - token), first_position + token - begin});
    }
  }
  // Long contexts first: what is left for the end is then small, and no thread waits long.
  std::sort(ranges.begin(), ranges.end(), [](const TokenRange& a, const TokenRange& b) {
    return a.position != b.position ? a.position > b.position : a.token < b.token;
  });
}

}  // namespace

AttentionKernel attention_kernel(Isa isa) {
  return isa == Isa::kAvx2 ? N_AVX2::attend : N_AVX3::attend;
}

void attention(Isa isa, Team& team, Workspace& scratch, std::vector<TokenRange>& ranges,
               const Tensor& y, const Tensor& q, const KvLayer& kv, const BatchView& batch,
               const HeadMap& heads, const AttentionSpec& spec) {
  const auto num_heads = static_cast<int32_t>(q.cols / kv.head_dim);
  int32_t most_heads = 1;
  for (int32_t g = 0; g < kv.num_heads; ++g) {
    const HeadRange range = heads_of(g, num_heads, heads);
    most_heads = std::max(most_heads, range.end - range.begin);
  }
  cut_into_ranges(batch, std::max(1, kItemRows / most_heads), ranges);
  scratch.reserve(static_cast<size_t>(cpu_scratch_bytes(most_heads, kv.head_dim)));

  const AttentionKernel kernel = attention_kernel(isa);
  const auto items = static_cast<int64_t>(ranges.size()) * kv.num_heads;
  parallel_for(team, items, [&](int64_t index, int thread) {
    const TokenRange& range = ranges[static_cast<size_t>(index / kv.num_heads)];
    AttentionItem item;
    item.kv_head = static_cast<int32_t>(index % kv.num_heads);
    const HeadRange local = heads_of(item.kv_head, num_heads, heads);
    if (local.begin == local.end) return;
    item.kv = &kv;
    item.blocks = batch.block_tables + int64_t{range.sequence} * batch.max_blocks;
    item.first_position = range.position;
    item.tokens = range.tokens;
    item.heads = local.end - local.begin;
    item.spec = spec;
    const int64_t column = int64_t{local.begin} * kv.head_dim;
    const int64_t columns = int64_t{item.heads} * kv.head_dim;
    item.q = q.row_range(range.token, range.tokens).column_range(column, columns);
    item.y = y.row_range(range.token, range.tokens).column_range(column, columns);
    kernel(item, static_cast<float*>(scratch.of(thread)));
  });
}

}  // namespace trireme::cpu
