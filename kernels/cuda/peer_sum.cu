// SPDX-License-Identifier: Apache-2.0
// Sums over the GPUs of a group, each of which writes into the memory of all (NVLink, or PCIe).
//
// What a rank's memory holds (kernels/sizes.h says where):
// - counter: the number of the sum that comes next, and ctas that have finished this one.
// - flags [2 phases][cta][rank]: the number of the last sum whose data of that phase is there.
// - words [2 parities][rank][...]: four bytes of a rank's x below the tag of the sum's number.
// - vectors [2 parities][2][rank][...]: a rank's share of this rank's part; a rank's sum.
//
// Numbers live on the GPU, so that a launch that was recorded is good for every sum. Data of even
// and of odd numbers lie apart, and nothing else guards them: a rank that has finished sum n + 1
// has got something of it from every other, which that one wrote behind its kernel of sum n; so
// when it writes sum n + 2 over sum n nobody reads that any more.
//
// Bytes that leave a rank of N, x of B bytes: at once 2 B (N - 1), one way; in parts
// 2 B (N - 1) / N, two ways and two flags.
#include <cstring>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kernels.h"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 512;
// Kernels of kMostPeers ranks that share a GPU (MPS) can all be on it at once.
constexpr int kCtasOfSm = 2;
constexpr int64_t kWords = kSumAtOnceBytes / 4;
constexpr int kLooks =
    256;  // at what has not come, before one at the host's word: that is far away

// At the beginning of the rank's own memory.
struct Counter {
  uint64_t next;
  int32_t ctas;  // that have finished
};

__device__ Counter* counter_of(const PeerView& view) {
  return reinterpret_cast<Counter*>(view.memory[view.rank]);
}

// Behind the last look of any thread of the cta at the number.
__device__ void finish(const PeerView& view, uint64_t number) {
  let_next_begin();  // not before: on a GPU that several ranks share it could need the others' room
  __syncthreads();
  if (threadIdx.x != 0) return;
  Counter* const counter = counter_of(view);
  if (atomicAdd(&counter->ctas, 1) + 1 != static_cast<int32_t>(gridDim.x)) return;
  counter->ctas = 0;
  counter->next = number + 1;
}

// Whether to look again.
__device__ bool keep_looking(const PeerView& view, int& looks) {
  if (++looks % kLooks == 0 && load_flag(view.given_up) != 0) return false;
  pause_between_looks();
  return true;
}

// ---- at once ----

// Of a sum, in 32 bits; 0, which is in memory that nobody wrote, is none's.
__device__ uint32_t tag_of(uint64_t number) {
  return static_cast<uint32_t>(number % 0xFFFFFFFFu) + 1;
}

// What rank `from` sends to rank `to`.
__device__ uint64_t* words_of(const PeerView& view, int to, uint64_t number, int from) {
  return reinterpret_cast<uint64_t*>(view.memory[to] + kPeerWordsAt) +
         (static_cast<int64_t>(number % 2) * view.size + from) * kWords;
}

template <typename E>
constexpr int kOfWord = 4 / sizeof(E);

// Word i of x; zeros behind its end.
template <typename E>
__device__ uint32_t read_word(const E* x, int64_t i, int64_t count) {
  E values[kOfWord<E>];
  for (int k = 0; k < kOfWord<E>; ++k) {
    const int64_t at = i * kOfWord<E> + k;
    values[k] = at < count ? x[at] : from_float<E>(0);
  }
  uint32_t bits;
  std::memcpy(&bits, values, sizeof(bits));
  return bits;
}

template <typename E>
__device__ void add_word(float* sums, uint32_t bits, bool first) {
  E values[kOfWord<E>];
  std::memcpy(static_cast<void*>(values), &bits, sizeof(bits));
  for (int k = 0; k < kOfWord<E>; ++k) {
    const float value = to_float(values[k]);
    sums[k] = first ? value : sums[k] + value;
  }
}

// Waits for word i of all others, which lie at `incoming`, and sums.
template <typename E>
__device__ void sum_word(const PeerView& view, const uint64_t* incoming, uint32_t tag, E* x,
                         int64_t i, int64_t count) {
  uint64_t words[kMostPeers] = {};
  int looks = 0;
  bool all = false;
  while (!all) {
    all = true;
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r) {
      if (r >= view.size || r == view.rank) continue;
      words[r] = load_word(incoming + r * kWords + i);
      all = all && static_cast<uint32_t>(words[r] >> 32) == tag;
    }
    if (!all && !keep_looking(view, looks)) return;
  }
  const uint32_t own = read_word(x, i, count);
  float sums[kOfWord<E>] = {};
#pragma unroll
  for (int r = 0; r < kMostPeers; ++r) {
    if (r >= view.size) continue;
    add_word<E>(sums, r == view.rank ? own : static_cast<uint32_t>(words[r]), r == 0);
  }
  for (int k = 0; k < kOfWord<E>; ++k) {
    const int64_t at = i * kOfWord<E> + k;
    if (at < count) x[at] = from_float<E>(sums[k]);
  }
}

// One word of those that this sum does not need gets its tag, so that none keeps another's for so
// long that it comes again.
__device__ void renew_a_word(const PeerView& view, uint64_t number, int64_t words) {
  const auto i = static_cast<int64_t>(number / 2 % kWords);
  if (i < words) return;
  const uint64_t word = uint64_t{tag_of(number)} << 32;
  for (int r = 0; r < view.size; ++r) {
    if (r != view.rank) store_word(words_of(view, r, number, view.rank) + i, word);
  }
}

// x [count]. Each thread sends its words of x to all, then sums them as the others' arrive. Grid:
// a cta for kThreads words, at most kPeerCtas.
template <typename E>
__global__ __launch_bounds__(kThreads, kCtasOfSm) void at_once_kernel(PeerView view, E* x,
                                                                      int64_t count) {
  after_previous();
  const uint64_t number = counter_of(view)->next;
  const uint32_t tag = tag_of(number);
  const int64_t words = (count + kOfWord<E> - 1) / kOfWord<E>;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = first; i < words; i += step) {
    const uint64_t word = uint64_t{tag} << 32 | read_word(x, i, count);
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r) {
      if (r >= view.size || r == view.rank) continue;
      store_word(words_of(view, r, number, view.rank) + i, word);
    }
  }
  if (first == 0) renew_a_word(view, number, words);
  const uint64_t* const incoming = words_of(view, view.rank, number, 0);
  for (int64_t i = first; i < words; i += step) sum_word(view, incoming, tag, x, i, count);
  finish(view, number);
}

// ---- in parts ----

enum Phase { kParts, kSums };

template <typename E>
struct alignas(16) Vector {
  static constexpr int kElements = 16 / sizeof(E);
  E values[kElements];
};

// At `to`, what rank `from` writes there: its share of the part of `to`, or the sum of its own
// part.
template <typename E>
__device__ Vector<E>* vectors_of(const PeerView& view, int to, uint64_t number, Phase phase,
                                 int from) {
  return reinterpret_cast<Vector<E>*>(view.memory[to] + peer_parts_at(view.size)) +
         ((static_cast<int64_t>(number % 2) * 2 + phase) * view.size + from) *
             peer_part_vectors(view.size);
}

__device__ uint64_t* flag_of(const PeerView& view, int to, Phase phase, int from) {
  return reinterpret_cast<uint64_t*>(view.memory[to] + kPeerFlagsAt) +
         (phase * kPeerCtas + static_cast<int>(blockIdx.x)) * kMostPeers + from;
}

template <typename E>
__device__ bool is_whole(const E* x, int64_t i, int64_t count) {
  return reinterpret_cast<uintptr_t>(x) % sizeof(Vector<E>) == 0 &&
         (i + 1) * Vector<E>::kElements <= count;
}

// Vector i of x; zeros behind its end.
template <typename E>
__device__ Vector<E> read_vector(const E* x, int64_t i, int64_t count) {
  if (is_whole(x, i, count)) return reinterpret_cast<const Vector<E>*>(x)[i];
  Vector<E> vector;
  for (int k = 0; k < Vector<E>::kElements; ++k) {
    const int64_t at = i * Vector<E>::kElements + k;
    vector.values[k] = at < count ? x[at] : from_float<E>(0);
  }
  return vector;
}

template <typename E>
__device__ void write_vector(E* x, int64_t i, int64_t count, const Vector<E>& vector) {
  if (is_whole(x, i, count)) {
    reinterpret_cast<Vector<E>*>(x)[i] = vector;
    return;
  }
  for (int k = 0; k < Vector<E>::kElements; ++k) {
    const int64_t at = i * Vector<E>::kElements + k;
    if (at < count) x[at] = vector.values[k];
  }
}

// This cta has written all of the phase; and waits until that is so in every rank.
__device__ void exchange_flags(const PeerView& view, uint64_t number, Phase phase) {
  __syncthreads();
  const int other = static_cast<int>(threadIdx.x);
  if (other < view.size && other != view.rank) {
    store_flag(flag_of(view, other, phase, view.rank), number);
    const uint64_t* const flag = flag_of(view, view.rank, phase, other);
    int looks = 0;
    while (load_flag(flag) != number && keep_looking(view, looks)) {
    }
  }
  __syncthreads();
}

// Vector i of the part of this rank, whose elements begin at `part`.
template <typename E>
__device__ Vector<E> sum_vector(const PeerView& view, uint64_t number, int64_t i,
                                const Vector<E>& own) {
  float sums[Vector<E>::kElements] = {};
#pragma unroll
  for (int r = 0; r < kMostPeers; ++r) {
    if (r >= view.size) continue;
    const Vector<E> one =
        r == view.rank ? own : vectors_of<E>(view, view.rank, number, kParts, r)[i];
    for (int k = 0; k < Vector<E>::kElements; ++k) {
      const float value = to_float(one.values[k]);
      sums[k] = r == 0 ? value : sums[k] + value;
    }
  }
  Vector<E> sum;
  for (int k = 0; k < Vector<E>::kElements; ++k) sum.values[k] = from_float<E>(sums[k]);
  return sum;
}

// x [count], of which each rank sums a part: others' shares of it come, its sum goes out. A cta has
// the same vectors of all parts, so it waits for that cta of the others alone. Grid: a cta for
// kThreads vectors of a part, at most kPeerCtas.
template <typename E>
__global__ __launch_bounds__(kThreads, kCtasOfSm) void in_parts_kernel(PeerView view, E* x,
                                                                       int64_t count) {
  after_previous();
  const uint64_t number = counter_of(view)->next;
  const int64_t vectors = (count + Vector<E>::kElements - 1) / Vector<E>::kElements;
  const int64_t part = (vectors + view.size - 1) / view.size;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  const auto end_of = [&](int r) { return min(part, vectors - r * part); };
  for (int r = 0; r < view.size; ++r) {
    if (r == view.rank) continue;
    Vector<E>* const to = vectors_of<E>(view, r, number, kParts, view.rank);
    for (int64_t i = first; i < end_of(r); i += step) to[i] = read_vector(x, r * part + i, count);
  }
  if (first == 0) renew_a_word(view, number, 0);
  exchange_flags(view, number, kParts);
  for (int64_t i = first; i < end_of(view.rank); i += step) {
    const int64_t at = view.rank * part + i;
    const Vector<E> sum = sum_vector<E>(view, number, i, read_vector(x, at, count));
    write_vector(x, at, count, sum);
    for (int r = 0; r < view.size; ++r) {
      if (r != view.rank) vectors_of<E>(view, r, number, kSums, view.rank)[i] = sum;
    }
  }
  exchange_flags(view, number, kSums);
  for (int r = 0; r < view.size; ++r) {
    if (r == view.rank) continue;
    const Vector<E>* const from = vectors_of<E>(view, view.rank, number, kSums, r);
    for (int64_t i = first; i < end_of(r); i += step) {
      write_vector(x, r * part + i, count, from[i]);
    }
  }
  finish(view, number);
}

dim3 ctas_of(int64_t items) {
  return dim3(static_cast<unsigned>(
      min(static_cast<int64_t>(kPeerCtas), (items + kThreads - 1) / kThreads)));
}

template <typename E>
void at_once(cudaStream_t stream, const PeerView& view, const Tensor& x) {
  const int64_t count = x.rows * x.cols;
  launch(at_once_kernel<E>, ctas_of((count + kOfWord<E> - 1) / kOfWord<E>), kThreads, 0, stream,
         view, static_cast<E*>(x.data), count);
}

template <typename E>
void in_parts(cudaStream_t stream, const PeerView& view, const Tensor& x) {
  const int64_t count = x.rows * x.cols;
  const int64_t of_part = int64_t{Vector<E>::kElements} * view.size;
  launch(in_parts_kernel<E>, ctas_of((count + of_part - 1) / of_part), kThreads, 0, stream, view,
         static_cast<E*>(x.data), count);
}

}  // namespace

void sum_at_once(cudaStream_t stream, const PeerView& view, const Tensor& x) {
  if (x.dtype == DType::kF32) at_once<float>(stream, view, x);
  if (x.dtype == DType::kBF16) at_once<__nv_bfloat16>(stream, view, x);
  if (x.dtype == DType::kF16) at_once<__half>(stream, view, x);
}

void sum_in_parts(cudaStream_t stream, const PeerView& view, const Tensor& x) {
  if (x.dtype == DType::kF32) in_parts<float>(stream, view, x);
  if (x.dtype == DType::kBF16) in_parts<__nv_bfloat16>(stream, view, x);
  if (x.dtype == DType::kF16) in_parts<__half>(stream, view, x);
}

}  // namespace trireme::cuda
