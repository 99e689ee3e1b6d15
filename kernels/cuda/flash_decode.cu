// SPDX-License-Identifier: Apache-2.0
// Attention of sequences with one query, on tensor cores over a paged cache of bf16; long contexts
// are split (Flash-Decoding, Dao et al. 2023).
//
// The rows of a cta are the query heads of one KV head, seldom more than 16: all its warps have the
// same ones. The warps take groups of 16 keys in turns. Each has the copies of its next two groups
// under way, a running softmax and a y of its own, so none waits for another before they are joined
// at the end.
//   grid (tiles of rows · splits, K, S); the splits' results are joined by join_kernel
#include <algorithm>

#include "kernels/cuda/flash.cuh"

namespace trireme::cuda {
namespace {

constexpr int kGroup = 16;  // keys: the k of an MMA
constexpr int kStages = 3;  // groups of a warp in shared memory: two are under way

// A group of keys or values: rows of D elements in pieces of 16 bytes. The pieces of a row are
// permuted, differently in each of the eight rows that one ldmatrix reads, so that these lie on
// different banks without padding.
template <int kD>
struct Group {
  static constexpr int kPieces = kD / 8;
  __nv_bfloat16 elements[kGroup * kD];

  __device__ static int order(int row) {
    constexpr int kRowsOfLine = kPieces < 8 ? 8 / kPieces : 1;  // of 128 bytes
    constexpr int kOrders = kPieces < 8 ? kPieces : 8;
    return row / kRowsOfLine % kOrders;
  }
  __device__ __nv_bfloat16* piece(int row, int piece) {
    return elements + row * kD + (piece ^ order(row)) * 8;
  }
};

// What a warp brings of its results to the others; where its groups were.
template <int kD>
struct Result {
  static constexpr int kStride = kD + 8;  // no two rows on one bank
  float y[kWarpRows * kStride];
};

template <int kD, int kWarps>
struct Shared {
  union OfWarp {
    struct {
      Group<kD> keys, values;
    } stages[kStages];
    Result<kD> result;
  } of_warps[kWarps];
  float most[kWarps][kWarpRows];
  float weights[kWarps][kWarpRows];
};

// Queues the copies of a group that begins at index `first`; `place` is that of this lane's key,
// lane % 16. Keys that no row sees become zeros: what stands there may be no number, and no weight
// would make it vanish.
template <int kD>
__device__ void fetch_group(Group<kD>& keys, Group<kD>& values, const AttentionView& view,
                            int64_t place, int32_t first) {
  constexpr int kPieces = Group<kD>::kPieces;
  static_assert(kGroup * kPieces % kWarp == 0);
  const auto rows_of = [](const void* cache) { return static_cast<const __nv_bfloat16*>(cache); };
#pragma unroll
  for (int i = 0; i < kGroup * kPieces; i += kWarp) {
    const int key = (i + static_cast<int>(threadIdx.x) % kWarp) / kPieces;
    const int piece = (i + static_cast<int>(threadIdx.x) % kWarp) % kPieces;
    const int64_t of_key = __shfl_sync(0xFFFFFFFFu, place, key);
    const bool present = of_key >= 0 && piece * 8 < view.head_dim;
    const bool before = first + key < view.prefix;
    const int64_t at = present ? of_key + piece * 8 : 0;
    copy_async(keys.piece(key, piece), rows_of(before ? view.prefix_keys : view.keys) + at,
               present);
    copy_async(values.piece(key, piece), rows_of(before ? view.prefix_values : view.values) + at,
               present);
  }
}

// Scores of the rows and a group of keys: s[n] are keys 8n to 8n + 7.
template <int kD>
__device__ void multiply_keys(float (&s)[2][4], const Rows<kD>& rows, Group<kD>& keys) {
  const int lane = threadIdx.x % kWarp;
  const int row = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int chunk = 0; chunk < kD / 16; ++chunk) {
    uint32_t b[4];
    load_matrices(b, keys.piece(row, chunk * 2 + lane / 8 % 2));
    multiply(s[0], rows.q[chunk], b[0], b[1]);
    multiply(s[1], rows.q[chunk], b[2], b[3]);
  }
}

// Products become scores, then probabilities relative to the largest score so far, as an A
// fragment; y and weight follow.
template <int kD>
__device__ void normalise(uint32_t (&p)[4], float (&s)[2][4], Rows<kD>& rows,
                          const AttentionView& view, const Work& work, int32_t first) {
  const int lane = threadIdx.x % kWarp;
  const bool whole = first + kGroup <= work.index_end &&
                     (first >= work.first_seen || first + kGroup <= view.prefix);
  float most[2] = {rows.most[0], rows.most[1]};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n][i] = view.score(s[n][i]) * kLog2E;
      if (!whole) {
        const int32_t index = first + n * 8 + lane % 4 * 2 + i % 2;
        const bool seen =
            index < work.index_end && (index < view.prefix || index >= work.first_seen);
        if (!seen) s[n][i] = -INFINITY;
      }
      most[i / 2] = fmaxf(most[i / 2], s[n][i]);
    }
  }
  most[0] = quad_max(most[0]);
  most[1] = quad_max(most[1]);
  // Seldom, once some groups were seen.
  if (__any_sync(0xFFFFFFFFu, most[0] != rows.most[0] || most[1] != rows.most[1])) {
    raise_most(rows, 0, most[0]);
    raise_most(rows, 1, most[1]);
  }
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const float base = base_of(most[side]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float low = exp2f(s[n][2 * side] - base);
      const float high = exp2f(s[n][2 * side + 1] - base);
      rows.weight[side] += low + high;
      p[2 * n + side] = pack(low, high);
    }
  }
}

// y += p · V.
template <int kD>
__device__ void multiply_values(const uint32_t (&p)[4], Rows<kD>& rows, Group<kD>& values) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kD / 8; n += 2) {
    uint32_t b[4];
    load_transposed(b, values.piece(lane % 16, n + lane / 16));
    multiply(rows.y[n], p, b[0], b[1]);
    multiply(rows.y[n + 1], p, b[2], b[3]);
  }
}

// Puts a warp's results where the others find them.
template <int kD, int kWarps>
__device__ void bring(Shared<kD, kWarps>& shared, int warp, const Rows<kD>& rows) {
  const int lane = threadIdx.x % kWarp;
  Result<kD>& result = shared.of_warps[warp].result;
  __syncwarp();  // all lanes have read its last group
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int row = lane / 4 + side * 8;
    const float weight = quad_sum(rows.weight[side]);
    if (lane % 4 == 0) {
      shared.most[warp][row] = rows.most[side];
      shared.weights[warp][row] = weight;
    }
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      float* const to = result.y + row * Result<kD>::kStride + n * 8 + lane % 4 * 2;
      to[0] = rows.y[n][2 * side];
      to[1] = rows.y[n][2 * side + 1];
    }
  }
}

// Joins what the warps have brought: the result, or a split's part of it.
template <int kD, int kWarps>
__device__ void join_warps(Shared<kD, kWarps>& shared, const AttentionView& view, const Work& work,
                           int32_t split) {
  for (int i = threadIdx.x; i < kWarpRows * kD; i += kWarps * kWarp) {
    const int row = i / kD;
    const int channel = i % kD;
    if (work.row_begin + row >= work.num_rows || channel >= view.head_dim) continue;
    float most = -INFINITY;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, shared.most[w][row]);
    const float base = base_of(most);
    float sum = 0;
    float weight = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(shared.most[w][row] - base);
      sum += shared.of_warps[w].result.y[row * Result<kD>::kStride + channel] * factor;
      weight += shared.weights[w][row] * factor;
    }
    const int32_t head = work.head_of(work.row_begin + row);
    if (view.num_splits == 1) {
      // join_kernel's bits; a sequence that only fills a recorded step may see nothing
      view.store(work.first_token, head, channel, weight == 0 ? 0 : sum / weight);
      continue;
    }
    float* const part = view.part(work.sequence, head, split);
    part[channel] = sum;
    if (channel == 0) {
      part[view.head_dim] = most;
      part[view.head_dim + 1] = weight;
    }
  }
}

// The cta's work; false: it has none.
__device__ bool find_work(const AttentionView& view, int32_t& split, Work& work) {
  work.sequence = static_cast<int32_t>(blockIdx.z);
  work.kv_head = static_cast<int32_t>(blockIdx.y);
  work.first_token = view.query_begin[work.sequence];
  work.queries = view.query_begin[work.sequence + 1] - work.first_token;
  if (work.queries != 1) return false;  // the other kernel's
  work.context = view.context[work.sequence];
  work.first_head = view.heads_begin(work.kv_head);
  work.num_group = view.heads_end(work.kv_head) - work.first_head;
  work.num_rows = work.num_group;
  const auto cta = static_cast<int32_t>(blockIdx.x);
  split = cta % view.num_splits;
  work.row_begin = cta / view.num_splits * kWarpRows;
  if (work.row_begin >= work.num_rows) return false;
  work.index_begin = split * kSplitPositions;
  work.index_end = view.prefix + work.context;
  if (view.num_splits > 1) {
    if (work.index_begin >= work.index_end) return false;  // another row's context is longer
    work.index_end = min(work.index_end, work.index_begin + kSplitPositions);
  }
  const bool windowed = view.spec.window > 0;
  work.first_seen = windowed ? max(0, view.prefix + work.context - 1 - view.spec.window + 1) : 0;
  return true;
}

// Ctas on a multiprocessor that the shared memory allows, which bounds their registers.
template <int kD>
constexpr int kCtasAtOnce = kD <= 64 ? 4 : 2;

template <int kD, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, kCtasAtOnce<kD>)
    decode_kernel(AttentionView view) {
  auto& shared = *static_cast<Shared<kD, kWarps>*>(dynamic_shared_memory());
  let_next_begin();
  // What the host sent before the step, and keys of earlier steps, are no kernel's results.
  Work work;
  int32_t split = 0;
  if (!find_work(view, split, work)) {
    after_previous();  // whoever waits for this kernel waits for those before it
    return;
  }
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  auto& stages = shared.of_warps[warp].stages;
  constexpr int32_t kStep = kWarps * kGroup;
  static_assert(kTile % kStep == 0);  // so that a window moves no key to another warp
  int32_t at = next_tile(view, work, work.index_begin + warp * kGroup);
  int32_t next = at;
  int64_t place = place_of(view, work, next + lane % kGroup);
  const auto fetch_next = [&](int stage) {
    if (next < work.index_end) {
      fetch_group(stages[stage].keys, stages[stage].values, view, place, next);
      next = next_tile(view, work, next + kStep);
      place = place_of(view, work, next + lane % kGroup);
    }
    commit_copies();
  };
  const int32_t stored_last = view.prefix + work.context - 1;  // by a kernel before this one
  int fetched = 0;
  while (fetched < kStages - 1 && next + kGroup <= stored_last) fetch_next(fetched++);
  after_previous();
  while (fetched < kStages - 1) fetch_next(fetched++);

  Rows<kD> rows(view, work, work.row_begin);
  for (int stage = 0; at < work.index_end; at = next_tile(view, work, at + kStep)) {
    wait_for_older_copies();
    __syncwarp();
    fetch_next(stage == 0 ? kStages - 1 : stage - 1);
    float s[2][4] = {};
    uint32_t p[4];
    multiply_keys(s, rows, stages[stage].keys);
    normalise(p, s, rows, view, work, at);
    multiply_values(p, rows, stages[stage].values);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  bring(shared, warp, rows);
  __syncthreads();
  join_warps(shared, view, work, split);
}

// y = Σ over splits of the parts, each brought to the largest score so far. Grid (S, Q).
__global__ void join_kernel(AttentionView view) {
  let_next_begin();
  const auto sequence = static_cast<int32_t>(blockIdx.x);
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t token = view.query_begin[sequence];
  const int32_t queries = view.query_begin[sequence + 1] - token;
  const auto splits = static_cast<int32_t>(context_splits(view.prefix + view.context[sequence]));
  after_previous();
  if (queries != 1) return;
  for (int32_t channel = threadIdx.x; channel < view.head_dim; channel += blockDim.x) {
    float most = -INFINITY;
    float sum = 0;
    float weight = 0;
#pragma unroll 4
    for (int32_t i = 0; i < splits; ++i) {
      const float* part = view.part(sequence, head, i);
      const float larger = fmaxf(most, part[view.head_dim]);
      const float base = base_of(larger);
      const float of_sum = exp2f(most - base);
      const float of_part = exp2f(part[view.head_dim] - base);
      sum = sum * of_sum + part[channel] * of_part;
      weight = weight * of_sum + part[view.head_dim + 1] * of_part;
      most = larger;
    }
    view.store(token, head, channel, weight == 0 ? 0 : sum / weight);
  }
}

template <int kD, int kWarps>
void launch_decode(cudaStream_t stream, const AttentionView& view, int32_t sequences) {
  const int32_t group = std::min(view.heads.group, view.num_heads);
  const int32_t tiles = (group + kWarpRows - 1) / kWarpRows;
  const dim3 grid(static_cast<unsigned>(tiles * view.num_splits),
                  static_cast<unsigned>(view.num_kv_heads), static_cast<unsigned>(sequences));
  launch(decode_kernel<kD, kWarps>, grid, kWarps * kWarp, sizeof(Shared<kD, kWarps>), stream, view);
}

}  // namespace

void flash_decode(cudaStream_t stream, const AttentionView& view, int32_t sequences) {
  if (view.head_dim <= 32) {
    launch_decode<32, 4>(stream, view, sequences);
  } else if (view.head_dim <= 64) {
    launch_decode<64, 4>(stream, view, sequences);
  } else if (view.head_dim <= 128) {
    launch_decode<128, 4>(stream, view, sequences);
  } else {
    launch_decode<256, 2>(stream, view, sequences);
  }
  if (view.num_splits == 1) return;
  const dim3 grid(static_cast<unsigned>(sequences), static_cast<unsigned>(view.num_heads));
  launch(join_kernel, grid, 4 * kWarp, 0, stream, view);
}

}  // namespace trireme::cuda
