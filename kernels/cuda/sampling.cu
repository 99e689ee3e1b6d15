// SPDX-License-Identifier: Apache-2.0
// Draws of tokens from logits: what worker/sampler.h says, in double like it, one cta a row.
//
// Where an order matters each thread has a run of consecutive ids, and runs are joined in the order
// of threads: a draw's bits depend on its own row alone. What is kept shrinks step by step: all ids
// (top-k by digits of the scores), a list of candidates, the list of those that may be in the
// nucleus. Per row V fp32 are read and 24 V bytes of scratch used.
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr double kNone = -INFINITY;

struct List {
  double* weights;
  int32_t* ids;
};

struct View {
  const float* logits;
  int64_t stride;
  int64_t cols;
  int32_t logical;  // ids from here on are never drawn
  const DrawRow* rows;
  const ScoreChange* changes;
  std::byte* scratch;  // [rows, 24 · cols]
  int32_t* drawn;

  __device__ List list(int index) const {  // the first one's weights are the scores
    std::byte* of_row = scratch + int64_t{blockIdx.x} * 24 * cols;
    return {reinterpret_cast<double*>(of_row) + index * cols,
            reinterpret_cast<int32_t*>(of_row + 16 * cols) + index * cols};
  }
};

// Each thread's value, in the order of threads, for all of them until the next call.
template <typename T>
__device__ const T* share(T value) {
  __shared__ T parts[kThreads];
  __syncthreads();  // the last ones have been read
  parts[threadIdx.x] = value;
  __syncthreads();
  return parts;
}

template <typename T>
__device__ T sum_of_all(T value) {
  const T* parts = share(value);
  T sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += parts[i];
  return sum;
}

// The sum of the threads before this one; `total`: of all.
template <typename T>
__device__ T sum_before(T value, T& total) {
  const T* parts = share(value);
  T before = 0;
  total = 0;
  for (int i = 0; i < kThreads; ++i) {
    if (i == static_cast<int>(threadIdx.x)) before = total;
    total += parts[i];
  }
  return before;
}

// This thread's run of [0, count).
struct Run {
  int32_t begin, end;
  __device__ explicit Run(int32_t count) {
    const int32_t length = (count + kThreads - 1) / kThreads;
    begin = min(static_cast<int32_t>(threadIdx.x) * length, count);
    end = min(begin + length, count);
  }
};

// In the order of numbers; both zeros are one.
__device__ uint64_t key_of(double value) {
  value += 0.0;
  uint64_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  constexpr uint64_t kSign = uint64_t{1} << 63;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

// False if a logit is no number, or infinite.
__device__ bool load_scores(const View& view, const DrawRow& row, double* scores) {
  const float* logits = view.logits + blockIdx.x * view.stride;
  int bad = 0;
  for (int64_t id = threadIdx.x; id < view.cols; id += kThreads) {
    if (!(logits[id] < INFINITY)) bad = 1;
    scores[id] = logits[id];
  }
  bad = sum_of_all(bad);
  for (int32_t i = threadIdx.x; i < row.num_changes; i += kThreads) {
    const ScoreChange& change = view.changes[row.first_change + i];
    double score = scores[change.id] + change.bias;
    score = score < 0 ? score * change.factor : score / change.factor;
    scores[change.id] = change.banned ? kNone : score - change.less;
  }
  __syncthreads();
  return bad == 0;
}

// The best score and the lowest id that has it.
__device__ double find_best(const View& view, const double* scores, int32_t& id) {
  double best = kNone;
  int32_t at = view.logical;
  for (int32_t i = threadIdx.x; i < view.logical; i += kThreads) {
    if (scores[i] > best) {
      best = scores[i];
      at = i;
    }
  }
  const double* scores_of = share(best);
  for (int i = 0; i < kThreads; ++i) best = scores_of[i] > best ? scores_of[i] : best;
  // A thread whose own best is another has no id to offer.
  const int32_t mine = at < view.logical && scores[at] == best ? at : view.logical;
  const int32_t* ids = share(mine);
  id = view.logical;
  for (int i = 0; i < kThreads; ++i) id = min(id, ids[i]);
  return best;
}

// The key of the k-th best score, byte by byte from the highest.
__device__ uint64_t kth_best(const View& view, const double* scores, int32_t k) {
  __shared__ int32_t counts[256];
  uint64_t found = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    const uint64_t above = shift == 56 ? 0 : ~uint64_t{0} << (shift + 8);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += kThreads) counts[i] = 0;
    __syncthreads();
    for (int32_t id = threadIdx.x; id < view.logical; id += kThreads) {
      const uint64_t key = key_of(scores[id]);
      if ((key & above) == found) atomicAdd(&counts[key >> shift & 255], 1);
    }
    __syncthreads();
    int digit = 255;
    while (counts[digit] < k) k -= counts[digit--];
    found |= static_cast<uint64_t>(digit) << shift;
  }
  return found;
}

// Appends what `keeps` of the entries [0, count) to `to`, in their order. Returns how many, and the
// sum of their weights.
template <typename Weight, typename Id, typename Keeps>
__device__ int32_t compact(int32_t count, const List& to, double& sum, const Weight& weight_of,
                           const Id& id_of, const Keeps& keeps) {
  const Run run(count);
  int32_t mine = 0;
  double weights = 0;
  for (int32_t i = run.begin; i < run.end; ++i) {
    if (!keeps(i)) continue;
    ++mine;
    weights += weight_of(i);
  }
  int32_t total = 0;
  int32_t at = sum_before(mine, total);
  sum = sum_of_all(weights);
  for (int32_t i = run.begin; i < run.end; ++i) {
    if (!keeps(i)) continue;
    to.weights[at] = weight_of(i);
    to.ids[at++] = id_of(i);
  }
  __syncthreads();
  return total;
}

__device__ double mass_from(const List& list, int32_t count, uint64_t least_key) {
  double mass = 0;
  for (int32_t i = threadIdx.x; i < count; i += kThreads) {
    if (key_of(list.weights[i]) >= least_key) mass += list.weights[i];
  }
  return sum_of_all(mass);
}

// Cuts the candidates of `from` to the best that reach the share top_p; of equals, lower ids first.
// They are left in `from`, in order; `other` is used between. Returns how many.
__device__ int32_t keep_nucleus(const List& from, const List& other, int32_t count, double total,
                                double top_p) {
  const double needed = top_p * total;
  // Those below do not make up 1 - top_p all together: the boundary lies above. The best one's
  // weight is 1, which rounding must not cut off.
  const double cutoff = fmin(1.0, (1 - top_p) * total / count);
  const auto weight = [&](int32_t i) { return from.weights[i]; };
  const auto id = [&](int32_t i) { return from.ids[i]; };
  double sum = 0;
  const int32_t heads =
      compact(count, other, sum, weight, id, [&](int32_t i) { return from.weights[i] >= cutoff; });
  // The largest key from which on the masses reach what is needed.
  uint64_t low = key_of(cutoff);
  uint64_t high = key_of(1.0) + 1;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    (mass_from(other, heads, middle) >= needed ? low : high) = middle;
  }
  const double above = mass_from(other, heads, low + 1);
  const auto is_last = [&](int32_t i) { return key_of(other.weights[i]) == low; };
  const Run run(heads);
  int32_t mine = 0;
  for (int32_t i = run.begin; i < run.end; ++i) mine += is_last(i) ? 1 : 0;
  int32_t equals = 0;
  int32_t rank = sum_before(mine, equals);
  // Marks those equals that are not needed; `above` grows by one weight each.
  for (int32_t i = run.begin; i < run.end; ++i) {
    if (!is_last(i)) continue;
    if (rank > 0 && above + rank * other.weights[i] >= needed) other.ids[i] = -1;
    ++rank;
  }
  __syncthreads();
  return compact(
      heads, from, sum, [&](int32_t i) { return other.weights[i]; },
      [&](int32_t i) { return other.ids[i]; },
      [&](int32_t i) { return other.ids[i] >= 0 && key_of(other.weights[i]) >= low; });
}

// The id where the share `uniform` of the sum falls, in the order of ids.
__device__ void choose(const List& list, int32_t count, const DrawRow& row, int32_t* drawn) {
  const auto weight = [&](int32_t i) {
    return list.weights[i] >= row.min_p ? list.weights[i] : 0.0;
  };
  const Run run(count);
  double mine = 0;
  for (int32_t i = run.begin; i < run.end; ++i) mine += weight(i);
  double total = 0;
  double sum = sum_before(mine, total);
  const double target = row.uniform * total;
  // The first thread whose run passes the target has it; rounding may leave none: then the last
  // that could be drawn is.
  const bool passes = mine > 0 && sum + mine > target;
  const int32_t* offers = share(passes ? 1 : mine > 0 ? 2 : 0);
  int owner = -1;
  for (int i = kThreads - 1; i >= 0; --i) {
    if (offers[i] == 1 || (offers[i] == 2 && owner < 0)) owner = i;
  }
  if (static_cast<int>(threadIdx.x) != owner) return;
  for (int32_t i = run.begin; i < run.end; ++i) {
    if (weight(i) > 0) *drawn = list.ids[i];
    sum += weight(i);
    if (sum > target) break;
  }
}

__global__ void __launch_bounds__(kThreads) sample_kernel(View view) {
  begin();
  const DrawRow row = view.rows[blockIdx.x];
  int32_t* const drawn = view.drawn + blockIdx.x;
  const List scores = view.list(0);
  const List candidates = view.list(1);
  const bool finite = load_scores(view, row, scores.weights);
  int32_t best_id = 0;
  const double best = find_best(view, scores.weights, best_id);
  if (!finite || best == kNone || row.temperature == 0) {
    if (threadIdx.x == 0) {
      *drawn = !finite ? kLogitsNotFinite : best == kNone ? kNoTokenLeft : best_id;
    }
    return;
  }
  uint64_t least = 0;
  if (row.top_k > 0 && row.top_k < view.logical) least = kth_best(view, scores.weights, row.top_k);
  double total = 0;
  int32_t count = compact(
      view.logical, candidates, total,
      [&](int32_t id) { return exp((scores.weights[id] - best) / row.temperature); },
      [](int32_t id) { return id; },
      [&](int32_t id) { return key_of(scores.weights[id]) >= least; });
  if (row.top_p < 1) count = keep_nucleus(candidates, scores, count, total, row.top_p);
  choose(candidates, count, row, drawn);
}

}  // namespace

void sample(cudaStream_t stream, const SampleArguments& arguments) {
  const Tensor& logits = arguments.logits;
  if (logits.rows == 0) return;
  const View view = {static_cast<const float*>(logits.data),
                     logits.stride,
                     logits.cols,
                     arguments.logical_vocab_size,
                     arguments.rows,
                     arguments.changes,
                     static_cast<std::byte*>(arguments.scratch),
                     arguments.drawn};
  launch(sample_kernel, dim3(static_cast<unsigned>(logits.rows)), kThreads, 0, stream, view);
}

}  // namespace trireme::cuda
