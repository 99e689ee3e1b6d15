// SPDX-License-Identifier: Apache-2.0
// Decision 5: a row of a result is the same to the last bit whatever its company, the threads and
// the chunking.
#include <algorithm>
#include <functional>
#include <vector>

#include "tests/kernels/paged_batch.h"

namespace trireme {
namespace {

class BitIdentityTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, BitIdentityTest, all_paths(), path_name);

// Threads and rows (or tokens) at a time. More threads than cores cost much time in their barriers,
// so only the single thread tries every size.
struct Split {
  int threads;
  int64_t rows;
};
constexpr Split kSplits[] = {{1, 1},   {1, 2},  {1, 7},   {1, 33},  {1, 64},
                             {1, 100}, {2, 33}, {2, 301}, {3, 100}, {4, 301}};

void expect_same_rows(const Tensor& got, const Tensor& want, int64_t first) {
  for (int64_t i = 0; i < got.rows; ++i) {
    ASSERT_EQ(row_bytes(got, i), row_bytes(want, first + i)) << "row " << first + i;
  }
}

TEST_P(BitIdentityTest, MatmulRows) {
  // The second K is cut into several blocks when there are many rows, and into none when there is
  // one.
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{97, 333}, {70, 5001}}) {
    const auto single = make(1);
    GuardedTensor rows(*single, weight_type(), n, k);
    GuardedTensor x(*single, activation(), 301, k);
    rows.fill_random(1);
    x.fill_random(2);
    Weight w = single->make_weight(weight_type(), n, k);
    single->pack_rows(w, 0, rows);
    const Readable<float> bias = random_vector(n, 3);
    GuardedTensor want(*single, DType::kF32, 301, n);
    single->matmul(want, x, w, bias.data());
    for (const Split& split : kSplits) {
      SCOPED_TRACE(testing::Message() << split.threads << " threads, batches of " << split.rows);
      const auto backend = make(split.threads);
      for (int64_t first = 0; first < 301; first += split.rows == 1 ? 13 : split.rows) {
        const int64_t count = std::min(split.rows, 301 - first);
        GuardedTensor y(*backend, DType::kF32, count, n, 1);
        backend->matmul(y, x.view().row_range(first, count), w, bias.data());
        expect_same_rows(y, want, first);
      }
    }
  }
}

TEST_P(BitIdentityTest, ThreadsHaveSeparateRowsToo) {
  // N is one panel: the threads must share the rows.
  const auto single = make(1);
  GuardedTensor rows(*single, weight_type(), 20, 1024);
  GuardedTensor x(*single, activation(), 97, 1024);
  rows.fill_random(1);
  x.fill_random(2);
  Weight w = single->make_weight(weight_type(), 20, 1024);
  single->pack_rows(w, 0, rows);
  GuardedTensor want(*single, DType::kF32, 97, 20);
  single->matmul(want, x, w, nullptr);
  for (int threads = 2; threads <= 4; ++threads) {
    GuardedTensor y(*single, DType::kF32, 97, 20);
    make(threads)->matmul(y, x, w, nullptr);
    expect_same_rows(y, want, 0);
  }
}

struct AttentionVariant {
  int32_t window;
  float softcap;
  int32_t prefix;
};

class AttentionIdentityTest : public BackendTest {
 protected:
  void expect_same_whatever_the_chunks(const AttentionVariant& variant) {
    constexpr int32_t kLength = 211;
    const HeadMap heads = {1, 0, 3};
    const AttentionSpec spec = {0.2f, variant.softcap, variant.window};
    const auto single = make(1);
    PagedBatch batch(*single, activation(), 2, 40, 16, {kLength}, {kLength});
    if (variant.prefix > 0) batch.set_prefix(*single, variant.prefix, 8);
    GuardedTensor q(*single, DType::kF32, kLength, 5 * 40);
    q.fill_random(4);
    GuardedTensor want(*single, activation(), kLength, 5 * 40);
    single->attention(want, q, batch.kv, batch.view, heads, spec);
    for (const Split& split : kSplits) {
      SCOPED_TRACE(testing::Message() << split.threads << " threads, chunks of " << split.rows);
      const auto backend = make(split.threads);
      for (int32_t first = 0; first < kLength;) {
        const auto count = std::min(static_cast<int32_t>(split.rows), kLength - first);
        batch.set_queries({first + count}, {count});
        GuardedTensor y(*backend, activation(), count, 5 * 40, 1);
        backend->attention(y, q.view().row_range(first, count), batch.kv, batch.view, heads, spec);
        expect_same_rows(y, want, first);
        first += count;
      }
      if (HasFatalFailure()) return;
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Cpu, AttentionIdentityTest, all_paths(), path_name);

TEST_P(AttentionIdentityTest, Plain) { expect_same_whatever_the_chunks({0, 0, 0}); }
TEST_P(AttentionIdentityTest, Window) {
  for (const int32_t window : {1, 37, 64, 100, 500}) {
    SCOPED_TRACE(testing::Message() << "window " << window);
    expect_same_whatever_the_chunks({window, 0, 0});
  }
}
TEST_P(AttentionIdentityTest, SoftCap) { expect_same_whatever_the_chunks({0, 2.5f, 0}); }
TEST_P(AttentionIdentityTest, Prefix) { expect_same_whatever_the_chunks({0, 0, 70}); }
TEST_P(AttentionIdentityTest, AllAtOnce) { expect_same_whatever_the_chunks({50, 2.5f, 64}); }

TEST_P(BitIdentityTest, AttentionAmongOthers) {
  constexpr AttentionSpec kSpec = {0.17f, 0, 50};
  const HeadMap heads = {0, 0, 4};
  const auto backend = make(2);
  const std::vector<int32_t> contexts = {70, 3, 129, 64};
  const std::vector<int32_t> queries = {1, 3, 40, 1};
  PagedBatch batch(*backend, activation(), 2, 33, 8, contexts, queries);
  GuardedTensor q(*backend, DType::kF32, 45, 8 * 33);
  q.fill_random(5);
  GuardedTensor want(*backend, activation(), 45, 8 * 33);
  backend->attention(want, q, batch.kv, batch.view, heads, kSpec);
  const Readable<int32_t> tables = batch.tables;
  int32_t first = 0;
  for (size_t s = 0; s < contexts.size(); ++s) {
    batch.set_queries({contexts[s]}, {queries[s]});
    batch.view.block_tables = tables.data() + s * static_cast<size_t>(batch.view.max_blocks);
    GuardedTensor y(*backend, activation(), queries[s], 8 * 33);
    backend->attention(y, q.view().row_range(first, queries[s]), batch.kv, batch.view, heads,
                       kSpec);
    expect_same_rows(y, want, first);
    first += queries[s];
  }
}

struct Operation {
  DType type;
  int64_t cols;
  std::function<void(Backend& backend, Tensor y, Tensor x)> run;
};

auto in_place(const std::function<void(Backend& backend, Tensor x)>& run) {
  return [run](Backend& backend, Tensor y, Tensor x) {
    for (int64_t t = 0; t < x.rows; ++t) std::copy_n(x.row<float>(t), x.cols, y.row<float>(t));
    run(backend, y);
  };
}

TEST_P(BitIdentityTest, RowOperations) {
  constexpr int64_t kWidth = 2052;
  const auto single = make(1);
  GuardedTensor input(*single, DType::kF32, 100, 2 * kWidth);
  input.fill_random(6, 4.0f);
  const Readable<float> weight = random_vector(2 * kWidth, 7);
  const std::vector<Operation> operations = {
      {activation(), 2 * kWidth,
       [&](Backend& backend, Tensor y, Tensor x) { backend.rms_norm(y, x, weight.data(), 1e-5f); }},
      {activation(), kWidth,
       [&](Backend& backend, Tensor y, Tensor x) {
         GuardedTensor sum(backend, DType::kF32, x.rows, kWidth);
         for (int64_t t = 0; t < x.rows; ++t) {
           std::copy_n(x.row<float>(t), kWidth, sum.view().row<float>(t));
         }
         backend.add_rms_norm(y, sum, x.column_range(kWidth, kWidth), weight.data(), 1e-5f);
       }},
      {activation(), kWidth,
       [](Backend& backend, Tensor y, Tensor x) {
         backend.gated_activation(y, x, Backend::Activation::kSilu);
       }},
      {activation(), kWidth,
       [](Backend& backend, Tensor y, Tensor x) {
         backend.gated_activation(y, x, Backend::Activation::kGeluTanh);
       }},
      {DType::kF32, 2 * kWidth, in_place([&](Backend& backend, Tensor x) {
         backend.rms_norm_heads(x, 36, weight.data(), 1e-5f);
       })},
      {DType::kF32, 2 * kWidth,
       in_place([](Backend& backend, Tensor x) { backend.scale(x, 3.3f); })},
      {DType::kF32, 2 * kWidth,
       in_place([](Backend& backend, Tensor x) { backend.soft_cap(x, 3.3f); })},
  };
  for (size_t i = 0; i < operations.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "operation " << i);
    const Operation& operation = operations[i];
    GuardedTensor want(*single, operation.type, 100, operation.cols);
    operation.run(*single, want, input);
    for (const Split& split : kSplits) {
      const auto backend = make(split.threads);
      for (int64_t first = 0; first < 100; first += split.rows) {
        const Tensor part = input.view().row_range(first, std::min(split.rows, 100 - first));
        GuardedTensor y(*backend, operation.type, part.rows, operation.cols, split.rows % 2);
        operation.run(*backend, y, part);
        expect_same_rows(y, want, first);
      }
    }
  }
}

}  // namespace
}  // namespace trireme
