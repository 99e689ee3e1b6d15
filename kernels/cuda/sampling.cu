// SPDX-License-Identifier: Apache-2.0
// Draws of tokens from logits: what worker/sampler.h says, in double like it, one cta a row.
//
// Where an order matters each warp has a run of consecutive ids, which its lanes take in turns, and
// runs are joined in the order of warps: a draw's bits depend on its own row alone. A pass over the
// ids has kAtOnce reads of each thread under way, for a cta has to wait for the L2 cache alone.
//
// The best of a row whose scores nothing changes is one pass over V fp32. Else the scores become V
// doubles of scratch, and weights in their place: those of the k-th best score and above. What may
// be in the nucleus becomes a list (12 bytes an entry), which is searched and cut.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
static_assert(kWarps == kWarp, "join_all() has one lane for each warp");
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kAtOnce = 8;
constexpr double kNone = -INFINITY;

struct List {
  double* weights;
  int32_t* ids;
};

struct View {
  const float* logits;
  int64_t stride;
  int32_t cols;
  int32_t logical;  // ids from here on are never drawn
  const DrawRow* rows;
  const ScoreChange* changes;
  double* scratch;  // of all rows: scores, weights of a list, and its ids
  int32_t* drawn;

  __device__ const float* row() const { return logits + blockIdx.x * stride; }
  __device__ double* scores() const { return scratch + int64_t{blockIdx.x} * cols; }
  __device__ List list() const {
    double* const lists = scratch + int64_t{gridDim.x} * cols;
    auto* const ids = reinterpret_cast<int32_t*>(lists + int64_t{gridDim.x} * cols);
    return {lists + int64_t{blockIdx.x} * cols, ids + int64_t{blockIdx.x} * cols};
  }
};

__device__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Most {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

// Of the values of a warp, for all its lanes; of all threads, for all. The order is fixed.
template <typename T, typename Join>
__device__ T join_warp(T value, Join join) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = join(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

template <typename T, typename Join>
__device__ T join_all(T value, Join join) {
  __shared__ T parts[kWarps];
  value = join_warp(value, join);
  __syncthreads();  // the last ones have been read
  if (lane_index() == 0) parts[warp_index()] = value;
  __syncthreads();
  return join_warp(parts[lane_index()], join);
}

// The sum of the values of the warps before this one, where all lanes have the same; `total`: of
// all warps.
template <typename T>
__device__ T sum_of_warps_before(T value, T& total) {
  __shared__ T parts[kWarps];
  __syncthreads();  // the last ones have been read
  if (lane_index() == 0) parts[warp_index()] = value;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp_index()) before = total;
    total += parts[i];
  }
  return before;
}

template <typename T>
__device__ T sum_of_threads_before(T value) {
  T upto = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T below = __shfl_up_sync(kAllLanes, upto, static_cast<unsigned>(offset));
    if (lane_index() >= offset) upto += below;
  }
  T total = 0;
  const T before = sum_of_warps_before(__shfl_sync(kAllLanes, upto, kWarp - 1), total);
  const T in_warp = __shfl_up_sync(kAllLanes, upto, 1u);
  return lane_index() == 0 ? before : before + in_warp;
}

// The first index that `passes`; without any, the last that `counts`.
__device__ int first_or_last(int index, bool passes, bool counts) {
  const int best = join_all(passes ? 2 * kThreads - index : counts ? index : -1, Most{});
  return best > kThreads ? 2 * kThreads - best : best;
}

// The index-th of `parts` runs of [first, last).
struct Run {
  int32_t begin, end;
  __device__ Run(int32_t first, int32_t last, int index, int parts) {
    const int32_t length = (last - first + parts - 1) / parts;
    begin = min(first + index * length, last);
    end = min(begin + length, last);
  }
};

// use(i, read(i)) for i = begin, begin + step, … below end, in this order; kAtOnce reads go first.
template <typename Read, typename Use>
__device__ void each(int32_t begin, int32_t end, int32_t step, const Read& read, const Use& use) {
  for (int32_t first = begin; first < end; first += kAtOnce * step) {
    decltype(read(begin)) values[kAtOnce] = {};
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + u * step < end) values[u] = read(first + u * step);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + u * step < end) use(first + u * step, values[u]);
    }
  }
}

// The same for all values[0, count), by all threads.
template <typename E, typename Use>
__device__ void each_of(const E* values, int32_t count, const Use& use) {
  each(
      static_cast<int32_t>(threadIdx.x), count, kThreads, [&](int32_t i) { return values[i]; },
      use);
}

// use(i, values[i], rank) for those of values[0, count) that `keeps`; rank: how many of them stand
// before. Returns how many there are.
template <typename Keeps, typename Use>
__device__ int32_t in_order(const double* values, int32_t count, const Keeps& keeps,
                            const Use& use) {
  const Run run(0, count, warp_index(), kWarps);
  int32_t mine = 0;
  each(
      run.begin + lane_index(), run.end, kWarp, [&](int32_t i) { return values[i]; },
      [&](int32_t, double value) { mine += keeps(value) ? 1 : 0; });
  int32_t total = 0;
  int32_t before = sum_of_warps_before(join_warp(mine, Plus{}), total);
  const unsigned lanes_below = (1u << lane_index()) - 1;
  for (int32_t first = run.begin + lane_index(); first - lane_index() < run.end;
       first += kAtOnce * kWarp) {
    double some[kAtOnce] = {};
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + u * kWarp < run.end) some[u] = values[first + u * kWarp];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const bool kept = first + u * kWarp < run.end && keeps(some[u]);
      const unsigned who = __ballot_sync(kAllLanes, kept);
      if (kept) use(first + u * kWarp, some[u], before + __popc(who & lanes_below));
      before += __popc(who);
    }
  }
  __syncthreads();
  return total;
}

template <typename Keeps>
__device__ int32_t compact(const double* values, int32_t count, const List& to,
                           const Keeps& keeps) {
  return in_order(values, count, keeps, [&](int32_t i, double value, int32_t rank) {
    to.weights[rank] = value;
    to.ids[rank] = i;
  });
}

// An integer in the order of numbers; both zeros are one.
template <typename Float>
__device__ auto key_of(Float value) {
  using Key = std::conditional_t<sizeof(Float) == sizeof(uint64_t), uint64_t, uint32_t>;
  value += Float{0};
  Key bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

// A greedy draw from scores that are the logits: the lowest id of those that have the best.
__device__ int32_t best_logit(const View& view) {
  const float* const logits = view.row();
  float best = -INFINITY;
  int32_t at = -1;
  bool bad = false;
  const auto take = [&](int32_t id, float logit) {
    bad |= !(logit < INFINITY);
    if (logit > best && id < view.logical) {
      best = logit;
      at = id;
    }
  };
  const bool aligned = reinterpret_cast<uintptr_t>(logits) % sizeof(float4) == 0;
  const int32_t quads = aligned ? view.cols / 4 : 0;
  each_of(reinterpret_cast<const float4*>(logits), quads, [&](int32_t quad, const float4& four) {
    take(4 * quad, four.x);
    take(4 * quad + 1, four.y);
    take(4 * quad + 2, four.z);
    take(4 * quad + 3, four.w);
  });
  const int32_t rest = 4 * quads;
  each_of(logits + rest, view.cols - rest, [&](int32_t i, float logit) { take(rest + i, logit); });
  // The larger of two is the better, and of equals the one of the lower id.
  uint64_t mine = at < 0 ? 0 : uint64_t{key_of(best)} << 32 | ~static_cast<uint32_t>(at);
  if (bad) mine = ~uint64_t{0};
  const uint64_t winner = join_all(mine, Most{});
  if (winner == ~uint64_t{0}) return kLogitsNotFinite;
  return winner == 0 ? kNoTokenLeft : static_cast<int32_t>(~static_cast<uint32_t>(winner));
}

// False if a logit is no number, or infinite.
__device__ bool load_scores(const View& view, const DrawRow& row, double* scores) {
  int bad = 0;
  each_of(view.row(), view.cols, [&](int32_t id, float logit) {
    if (!(logit < INFINITY)) bad = 1;
    scores[id] = logit;
  });
  bad = join_all(bad, Most{});
  for (int32_t i = threadIdx.x; i < row.num_changes; i += kThreads) {
    const ScoreChange& change = view.changes[row.first_change + i];
    double score = scores[change.id] + change.bias;
    score = score < 0 ? score * change.factor : score / change.factor;
    scores[change.id] = change.banned ? kNone : score - change.less;
  }
  __syncthreads();
  return bad == 0;
}

// The lowest id that has this score.
__device__ int32_t first_with(const View& view, const double* scores, double wanted) {
  int32_t id = view.logical;
  each_of(scores, view.logical, [&](int32_t i, double score) {
    if (score == wanted) id = min(id, i);
  });
  return join_all(id, Least{});
}

constexpr int kBuckets = 256;

// The bucket of the k-th best of values[0, count); lower buckets are better, those of a negative
// number do not count. k becomes its place in the bucket.
template <typename Bucket>
__device__ int32_t bucket_of_kth(const double* values, int32_t count, int32_t& k,
                                 const Bucket& bucket_of) {
  __shared__ int32_t counts[kBuckets];
  __shared__ int32_t bucket, place;
  const auto mine = static_cast<int32_t>(threadIdx.x);
  __syncthreads();
  if (mine < kBuckets) counts[mine] = 0;
  __syncthreads();
  each_of(values, count, [&](int32_t, double value) {
    const int32_t of_value = bucket_of(value);
    if (of_value >= 0) atomicAdd(&counts[of_value], 1);
  });
  __syncthreads();
  const int32_t here = mine < kBuckets ? counts[mine] : 0;
  const int32_t before = sum_of_threads_before(here);
  if (before < k && k <= before + here) {
    bucket = mine;
    place = k - before;
  }
  __syncthreads();
  k = place;
  return bucket;
}

// The key of the k-th best score. First by the distance from the best, in which scores lie apart,
// so that few threads count in the same bucket; then among those in the bucket that has it, byte by
// byte of the keys from the highest.
__device__ uint64_t kth_best(const View& view, const double* scores, double best, int32_t k) {
  const auto distance = [&](double score) {
    const double below = 8 * (best - score);
    return below < kBuckets ? static_cast<int32_t>(below) : kBuckets - 1;
  };
  const int32_t bucket = bucket_of_kth(scores, view.logical, k, distance);
  const List list = view.list();
  const int32_t count =
      compact(scores, view.logical, list, [&](double score) { return distance(score) == bucket; });
  uint64_t found = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    const uint64_t above = shift == 56 ? 0 : ~uint64_t{0} << (shift + 8);
    const int32_t digit = bucket_of_kth(list.weights, count, k, [&](double score) {
      const uint64_t key = key_of(score);
      return (key & above) == found ? 255 - static_cast<int32_t>(key >> shift & 255) : -1;
    });
    found |= static_cast<uint64_t>(255 - digit) << shift;
  }
  return found;
}

// Puts weights in the place of scores: zeros where the key of the score is less than the least.
// Returns how many are kept; `total`: their sum.
__device__ int32_t weigh(const View& view, double* scores, double best, double temperature,
                         uint64_t least, double& total) {
  int32_t count = 0;
  total = 0;
  each_of(scores, view.logical, [&](int32_t id, double score) {
    const bool kept = key_of(score) >= least;
    const double weight = kept ? exp((score - best) / temperature) : 0;
    scores[id] = weight;
    count += kept ? 1 : 0;
    total += weight;
  });
  total = join_all(total, Plus{});
  return join_all(count, Plus{});
}

// The largest key from which on the masses reach what is needed, and that a weight has: by halves,
// each cut to the keys that are there. Without any: the key of the cutoff.
__device__ uint64_t last_key(const List& list, int32_t count, double cutoff, double needed) {
  uint64_t low = key_of(cutoff);
  uint64_t high = key_of(1.0) + 1;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    double mass = 0;
    uint64_t least = high;
    uint64_t most = low;
    each_of(list.weights, count, [&](int32_t, double weight) {
      const uint64_t key = key_of(weight);
      if (key >= middle) {
        mass += weight;
        least = min(least, key);
      } else {
        most = max(most, key);
      }
    });
    if (join_all(mass, Plus{}) >= needed) {
      low = join_all(least, Least{});
    } else {
      high = join_all(most, Most{}) + 1;
    }
  }
  return low;
}

// Puts the best that reach the share top_p into `list`, in the order of ids, among others of weight
// 0; of equals, lower ids first. Returns how many there are.
__device__ int32_t keep_nucleus(const View& view, const double* weights, const List& list,
                                int32_t count, double total, double top_p) {
  const double needed = top_p * total;
  // Those below do not make up 1 - top_p all together: the boundary lies above. The best one's
  // weight is 1, which rounding must not cut off.
  const double cutoff = fmin(1.0, (1 - top_p) * total / count);
  const int32_t heads =
      compact(weights, view.logical, list, [&](double weight) { return weight >= cutoff; });
  const uint64_t last = last_key(list, heads, cutoff, needed);
  double above = 0;
  each_of(list.weights, heads, [&](int32_t i, double weight) {
    if (key_of(weight) > last) above += weight;
    if (key_of(weight) < last) list.weights[i] = 0;
  });
  above = join_all(above, Plus{});
  // Of those that are equal `above` grows by one weight each.
  in_order(
      list.weights, heads, [&](double weight) { return key_of(weight) == last; },
      [&](int32_t i, double weight, int32_t rank) {
        if (rank > 0 && above + rank * weight >= needed) list.weights[i] = 0;
      });
  return heads;
}

// The index where the share `uniform` of the sum falls: the warp whose run has it, then the thread
// among all that share that run. Rounding may leave none that passes the target: then it is the
// last that could be drawn. Written by one thread. ids: of the indices, or null.
__device__ void choose(const double* weights, const int32_t* ids, int32_t count, const DrawRow& row,
                       int32_t* drawn) {
  __shared__ double sum_before_run;
  const auto weight = [&](int32_t i) { return weights[i] >= row.min_p ? weights[i] : 0.0; };
  const Run run(0, count, warp_index(), kWarps);
  double mine = 0;
  each(run.begin + lane_index(), run.end, kWarp, weight, [&](int32_t, double one) { mine += one; });
  mine = join_warp(mine, Plus{});
  double total = 0;
  const double before = sum_of_warps_before(mine, total);
  const double target = row.uniform * total;
  const int warp = first_or_last(warp_index(), mine > 0 && before + mine > target, mine > 0);
  if (warp == warp_index() && lane_index() == 0) sum_before_run = before;
  __syncthreads();

  const Run of_warp(0, count, warp, kWarps);
  const auto thread = static_cast<int>(threadIdx.x);
  const Run own(of_warp.begin, of_warp.end, thread, kThreads);
  mine = 0;
  for (int32_t i = own.begin; i < own.end; ++i) mine += weight(i);
  double sum = sum_before_run + sum_of_threads_before(mine);
  if (thread != first_or_last(thread, mine > 0 && sum + mine > target, mine > 0)) return;
  for (int32_t i = own.begin; i < own.end; ++i) {
    if (weight(i) > 0) *drawn = ids == nullptr ? i : ids[i];
    sum += weight(i);
    if (sum > target) break;
  }
}

__global__ void __launch_bounds__(kThreads) sample_kernel(View view) {
  begin();
  const DrawRow row = view.rows[blockIdx.x];
  int32_t* const drawn = view.drawn + blockIdx.x;
  if (row.temperature == 0 && row.num_changes == 0) {
    const int32_t id = best_logit(view);
    if (threadIdx.x == 0) *drawn = id;
    return;
  }
  double* const scores = view.scores();
  const bool finite = load_scores(view, row, scores);
  double best = kNone;
  each_of(scores, view.logical, [&](int32_t, double score) { best = Most{}(best, score); });
  best = join_all(best, Most{});
  const bool some_left = best > kNone && best < INFINITY;  // changes may make it infinite
  if (!finite || !some_left || row.temperature == 0) {
    const int32_t id = first_with(view, scores, best);
    if (threadIdx.x == 0) *drawn = !finite ? kLogitsNotFinite : some_left ? id : kNoTokenLeft;
    return;
  }
  uint64_t least = 0;
  if (row.top_k > 0 && row.top_k < view.logical) least = kth_best(view, scores, best, row.top_k);
  double total = 0;
  const int32_t count = weigh(view, scores, best, row.temperature, least, total);
  if (row.top_p < 1) {
    const List list = view.list();
    const int32_t heads = keep_nucleus(view, scores, list, count, total, row.top_p);
    choose(list.weights, list.ids, heads, row, drawn);
  } else {
    choose(scores, nullptr, view.logical, row, drawn);
  }
}

}  // namespace

void sample(cudaStream_t stream, const SampleArguments& arguments) {
  const Tensor& logits = arguments.logits;
  if (logits.rows == 0) return;
  const View view = {static_cast<const float*>(logits.data),
                     logits.stride,
                     static_cast<int32_t>(logits.cols),
                     arguments.logical_vocab_size,
                     arguments.rows,
                     arguments.changes,
                     static_cast<double*>(arguments.scratch),
                     arguments.drawn};
  launch(sample_kernel, dim3(static_cast<unsigned>(logits.rows)), kThreads, 0, stream, view);
}

}  // namespace trireme::cuda
