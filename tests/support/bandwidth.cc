// SPDX-License-Identifier: Apache-2.0
#include "tests/support/bandwidth.h"

#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/backend.h"

namespace trireme {
namespace {

// Four sequential streams side by side and a prefetch two pages ahead: a single stream leaves one
// core short of what its line buffers can hold.
constexpr size_t kStreams = 4;
constexpr size_t kAhead = 2048;

[[gnu::target("avx512f")]] int64_t sum_avx512(const std::byte* data, size_t bytes) {
  const size_t part = bytes / kStreams / 64 * 64;
  __m512i sums[kStreams] = {};
  for (size_t i = 0; i < part; i += 64) {
    for (size_t s = 0; s < kStreams; ++s) {
      const std::byte* line = data + s * part + i;
      _mm_prefetch(line + kAhead, _MM_HINT_T0);
      sums[s] = _mm512_add_epi64(sums[s], _mm512_loadu_si512(line));
    }
  }
  __m512i sum = sums[0];
  for (size_t s = 1; s < kStreams; ++s) sum = _mm512_add_epi64(sum, sums[s]);
  int64_t lanes[8];
  std::memcpy(lanes, &sum, sizeof(lanes));
  return std::accumulate(lanes, lanes + 8, int64_t{0});
}

[[gnu::target("avx2")]] int64_t sum_avx2(const std::byte* data, size_t bytes) {
  const size_t part = bytes / kStreams / 64 * 64;
  __m256i sums[kStreams] = {};
  for (size_t i = 0; i < part; i += 64) {
    for (size_t s = 0; s < kStreams; ++s) {
      const std::byte* line = data + s * part + i;
      _mm_prefetch(line + kAhead, _MM_HINT_T0);
      const auto* words = reinterpret_cast<const __m256i*>(line);
      sums[s] = _mm256_add_epi64(sums[s], _mm256_loadu_si256(words));
      sums[s] = _mm256_add_epi64(sums[s], _mm256_loadu_si256(words + 1));
    }
  }
  __m256i sum = sums[0];
  for (size_t s = 1; s < kStreams; ++s) sum = _mm256_add_epi64(sum, sums[s]);
  int64_t lanes[4];
  std::memcpy(lanes, &sum, sizeof(lanes));
  return std::accumulate(lanes, lanes + 4, int64_t{0});
}

}  // namespace

// The backend's own memory: the same pages, huge or not, as the weights have.
ReadBandwidth::ReadBandwidth(size_t bytes) : buffer_(make_backend({})->allocate(bytes)) {
  std::memset(buffer_.data(), 1, bytes);
}

double ReadBandwidth::measure(int threads) const {
  const auto sum = __builtin_cpu_supports("avx512f") ? sum_avx512 : sum_avx2;
  const size_t part = buffer_.bytes() / static_cast<size_t>(threads) / 64 * 64;
  const auto* data = static_cast<const std::byte*>(buffer_.data());
  std::atomic<int64_t> total = 0;  // keeps the loads from being optimised away
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) {
    helpers.emplace_back([&, t] { total += sum(data + static_cast<size_t>(t) * part, part); });
  }
  total += sum(data, part);
  for (std::thread& helper : helpers) helper.join();
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  const size_t read = part * static_cast<size_t>(threads);
  return total == 0 ? 0 : static_cast<double>(read) / time.count();
}

}  // namespace trireme
