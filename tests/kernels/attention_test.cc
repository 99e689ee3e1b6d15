// SPDX-License-Identifier: Apache-2.0
// Attention on every ISA path against its naive twin: heads, windows, soft caps and prefixes; and
// that what a token does not see has no part in its result.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/kernels/paged_batch.h"

namespace trireme {
namespace {

class AttentionTest : public BackendTest {
 protected:
  void SetUp() override {
    if (on_gpu() && weight_type() == DType::kF16) GTEST_SKIP() << "attention is as with fp32";
  }
  // The plain kernel takes every token by itself, and an emulated one takes its time.
  bool plain() const { return on_gpu() && activation() == DType::kF32; }
  void expect_as_naive(Backend& backend, const PagedBatch& batch, const GuardedTensor& q,
                       const HeadMap& heads, const AttentionSpec& spec) const {
    GuardedTensor y(backend, activation(), q.view().rows, q.view().cols);
    backend.attention(y, q, batch.kv, batch.view, heads, spec);
    const auto expected = naive::attention(naive::read(q), batch.kv, batch.view, heads, spec);
    // Tensor cores take queries and probabilities as bf16 too.
    if (on_gpu() && activation() == DType::kBF16) {
      expect_close_rows(y, expected, kBf16Bound);
    } else {
      expect_close(y, expected, bound_of(activation()));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Cpu, AttentionTest, all_paths(), path_name);
INSTANTIATE_TEST_SUITE_P(Cuda, AttentionTest, gpu_paths(), path_name);

struct Shape {
  int32_t q_heads, head_dim, block_size;
  HeadMap heads;
  int32_t kv_heads;
};

float usual_scale(int32_t head_dim) { return 1 / std::sqrt(static_cast<float>(head_dim)); }

TEST_P(AttentionTest, MatchesNaive) {
  const auto backend = make(2);
  const std::vector<Shape> shapes = {{1, 1, 1, {0, 0, 1}, 1},      {9, 64, 16, {0, 0, 3}, 3},
                                     {5, 33, 7, {4, 1, 3}, 2},     {7, 8, 16, {2, 0, 4}, 3},
                                     {32, 128, 16, {0, 0, 16}, 2}, {3, 96, 33, {14, 0, 16}, 2},
                                     {80, 16, 8, {0, 0, 80}, 1},   {6, 256, 16, {0, 0, 2}, 3}};
  for (const Shape& c : shapes) {
    SCOPED_TRACE(testing::Message() << c.q_heads << " heads of " << c.head_dim);
    // Decode, a whole prompt, a later chunk, a sequence that adds nothing, exactly one block.
    const std::vector<int32_t> queries = plain() ? std::vector<int32_t>{1, 9, 1, 5, 0, 4}
                                                 : std::vector<int32_t>{1, 77, 1, 33, 0, 64};
    PagedBatch batch(*backend, activation(), c.kv_heads, c.head_dim, c.block_size,
                     {1, 77, 200, 130, 10, 64}, queries);
    GuardedTensor q(*backend, DType::kF32, batch.view.num_tokens, c.q_heads * c.head_dim);
    q.fill_random(14);
    expect_as_naive(*backend, batch, q, c.heads, {usual_scale(c.head_dim), 0, 0});
  }
}

// Windows and prefixes at, beside and far from the edges of the blocks of 64.
TEST_P(AttentionTest, OptionsMatchNaive) {
  const auto backend = make(2);
  struct Options {
    int32_t prefix, window;
    float softcap;
  };
  const std::vector<Options> options = {{0, 1, 0},    {0, 63, 0},   {0, 64, 0}, {0, 65, 1.5f},
                                        {0, 1000, 0}, {1, 0, 0},    {64, 0, 0}, {130, 0, 50},
                                        {0, 0, 50},   {0, 0, 1.5f}, {65, 1, 0}, {3, 100, 1.5f}};
  for (const auto& [prefix, window, softcap] : options) {
    SCOPED_TRACE(testing::Message()
                 << "prefix " << prefix << ", window " << window << ", softcap " << softcap);
    // Tensor cores want channels by eights.
    const int32_t head_dim = on_gpu() && !plain() ? 40 : 33;
    const std::vector<int32_t> queries =
        plain() ? std::vector<int32_t>{1, 9, 1, 6, 4} : std::vector<int32_t>{1, 77, 1, 66, 64};
    PagedBatch batch(*backend, activation(), 2, head_dim, 7, {1, 77, 200, 130, 64}, queries);
    batch.set_prefix(*backend, prefix, 22);
    GuardedTensor q(*backend, DType::kF32, batch.view.num_tokens, 5 * head_dim);
    q.fill_random(23, 2.0f);
    expect_as_naive(*backend, batch, q, {4, 1, 3}, {0.3f, softcap, window});
  }
}

TEST_P(AttentionTest, RandomShapesMatchNaive) {
  for (uint32_t seed = 1; seed <= 16; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto up_to = [&](int most) { return std::uniform_int_distribution(0, most)(random); };
    const auto backend = make(1 + up_to(2));
    const int32_t group = 1 + up_to(7);
    const int32_t kv_heads = 1 + up_to(2);
    const int32_t head_dim = on_gpu() && !plain() ? 8 + 8 * up_to(11) : 1 + up_to(95);
    const int32_t q_heads = kv_heads * group;
    std::vector<int32_t> contexts, queries;
    for (int s = up_to(4); s >= 0; --s) {
      contexts.push_back(1 + up_to(199));
      const int32_t most = plain() ? std::min(contexts.back(), 5) : contexts.back();
      queries.push_back(1 + up_to(up_to(1) == 0 ? 0 : most - 1));
    }
    PagedBatch batch(*backend, activation(), kv_heads, head_dim, 1 + up_to(39), contexts, queries);
    batch.set_prefix(*backend, up_to(1) * up_to(150), seed);
    GuardedTensor q(*backend, DType::kF32, batch.view.num_tokens, q_heads * head_dim);
    q.fill_random(seed);
    const AttentionSpec spec = {usual_scale(head_dim) * static_cast<float>(1 + up_to(3)),
                                static_cast<float>(up_to(1) * (1 + up_to(30))),
                                up_to(1) * (1 + up_to(250))};
    expect_as_naive(*backend, batch, q, {0, 0, group}, spec);
  }
}

// A cache whose first positions may never be looked at: the window has passed them.
TEST_P(AttentionTest, PositionsBeforeTheWindowMayHoldAnything) {
  constexpr int32_t kContext = 200;
  constexpr int32_t kWindow = 50;
  const auto backend = make(2);
  for (const int32_t queries : {1, 3, 70}) {
    PagedBatch batch(*backend, activation(), 2, 33, 16, {kContext}, {queries});
    const int32_t first_seen = kContext - queries + 1 - kWindow;
    for (int32_t p = 0; p < first_seen; ++p) {
      for (int32_t h = 0; h < 2; ++h) {
        const int64_t row = (int64_t{batch.tables[static_cast<size_t>(p / 16)]} * 2 + h) * 16;
        for (int32_t d = 0; d < 33; ++d) {
          batch.keys->set(row + p % 16, d, NAN);
          batch.values->set(row + p % 16, d, NAN);
        }
      }
    }
    GuardedTensor q(*backend, DType::kF32, queries, 6 * 33);
    q.fill_random(24);
    expect_as_naive(*backend, batch, q, {0, 0, 3}, {0.2f, 5.0f, kWindow});
  }
}

// Reading them would end the program: their pages are closed.
TEST_P(AttentionTest, BlocksBeforeTheWindowAreNotRead) {
  constexpr int32_t kHeadDim = 32;
  const auto backend = make(1);
  if (on_gpu() && cuda_devices().devices[0].name != "emulated") {
    GTEST_SKIP() << "a GPU has no pages that can be closed";
  }
  const int64_t half = int64_t{4} * 64 * kHeadDim * element_size(activation());
  void* const memory = mmap(nullptr, static_cast<size_t>(2 * half), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  PagedBatch batch(*backend, activation(), 1, kHeadDim, 64, {256}, {50});
  batch.kv.k = memory;
  batch.kv.v = static_cast<std::byte*>(memory) + half;
  batch.kv.num_blocks = 4;
  batch.tables = {0, 1, 2, 3};
  batch.view.block_tables = batch.tables.data();
  for (void* const closed : {batch.kv.k, batch.kv.v}) {
    ASSERT_EQ(mprotect(closed, static_cast<size_t>(half / 2), PROT_NONE), 0);
  }
  GuardedTensor q(*backend, DType::kF32, 50, 2 * kHeadDim);
  q.fill_random(25);
  // The first token stands at 206 and sees positions from 128 on.
  expect_as_naive(*backend, batch, q, {0, 0, 2}, {0.2f, 0, 79});
  munmap(memory, static_cast<size_t>(2 * half));
}

}  // namespace
}  // namespace trireme
