// SPDX-License-Identifier: Apache-2.0
// Causal attention over the paged cache.
//
// Keys are taken in blocks of kPositions fixed positions (0-63, 64-127, …), in order, with a
// running maximum and sum (online softmax: Milakov & Gimelshein 2018); a learned prefix comes
// first, in blocks of its own. What one row (a token and a query head) computes depends on its own
// position only, so it is bit-identical whatever the chunking: a block of which it sees nothing,
// behind it or before its window, leaves it untouched even where its neighbours read that block.
//
// One work item is some neighbouring tokens of a sequence with all query heads that share one KV
// head: a block of keys and values is read and widened once for all these rows.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/team.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"
#include "kernels/sizes.h"

namespace trireme::cpu {

constexpr int64_t kPositions = kAttentionPositions;

struct AttentionItem {
  const KvLayer* kv = nullptr;
  const int32_t* blocks = nullptr;  // this sequence's row of the block table
  int32_t kv_head = 0;
  int32_t first_position = 0;  // of the item's first token
  int32_t tokens = 0;
  int32_t heads = 0;
  AttentionSpec spec;
  Tensor q;  // [tokens, heads · D] fp32
  Tensor y;  // the same of bf16 or fp32
};

using AttentionKernel = void (*)(const AttentionItem& item, float* scratch);
AttentionKernel attention_kernel(Isa isa);

// Some tokens of one sequence.
struct TokenRange {
  int32_t sequence = 0;
  int32_t token = 0;
  int32_t tokens = 0;
  int32_t position = 0;  // of the first
};

// Shapes and types are checked by the caller. `ranges` and `scratch` are kept between calls and
// only grow.
void attention(Isa isa, Team& team, Workspace& scratch, std::vector<TokenRange>& ranges,
               const Tensor& y, const Tensor& q, const KvLayer& kv, const BatchView& batch,
               const HeadMap& heads, const AttentionSpec& spec);

}  // namespace trireme::cpu
