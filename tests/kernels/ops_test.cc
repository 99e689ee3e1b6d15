// SPDX-License-Identifier: Apache-2.0
// Every operation on every ISA path against its naive twin: odd sizes, strides, poisoned outputs.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/sizes.h"
#include "tests/kernels/fixture.h"
#include "tests/support/naive_ops.h"

namespace trireme {
namespace {

class OpsTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, OpsTest, all_paths(), path_name);
INSTANTIATE_TEST_SUITE_P(Cuda, OpsTest, gpu_paths(), path_name);

struct Shape {
  int64_t t, n, k;
};

// Packs w in pieces, out of order, as a loader that reads shards does.
Weight pack(Backend& backend, const Tensor& rows) {
  Weight w = backend.make_weight(rows.dtype, rows.rows, rows.cols);
  const int64_t cut = rows.rows / 3;
  backend.pack_rows(w, cut, rows.row_range(cut, rows.rows - cut));
  backend.pack_rows(w, 0, rows.row_range(0, cut));
  return w;
}

TEST_P(OpsTest, MatmulMatchesNaive) {
  const auto backend = make(2);
  const std::vector<Shape> shapes = {{1, 1, 1},    {7, 33, 1},    {33, 7, 33},     {1, 257, 129},
                                     {2, 64, 64},  {12, 96, 31},  {13, 31, 255},   {100, 65, 513},
                                     {17, 32, 32}, {48, 161, 97}, {130, 33, 2101}, {261, 65, 2075}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << shape.t << " x " << shape.n << " x " << shape.k);
    GuardedTensor rows(*backend, weight_type(), shape.n, shape.k);
    GuardedTensor x(*backend, activation(), shape.t, shape.k);
    rows.fill_random(1);
    x.fill_random(2);
    const Weight w = pack(*backend, rows);
    const Readable<float> bias = random_vector(shape.n, 3);
    for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
      GuardedTensor y(*backend, DType::kF32, shape.t, shape.n);
      backend->matmul(y, x, w, b);
      const auto expected = naive::matmul(naive::read(x), naive::read(rows), b);
      // Tensor cores take fp16 weights with fp16 inputs.
      const bool rounded = on_gpu() && weight_type() == DType::kF16;
      rounded ? expect_close_rows(y, expected, kBf16Bound) : expect_close(y, expected, kFp32Bound);
    }
  }
}

// A loader makes rows where the backend wants them, several times.
TEST_P(OpsTest, RowsMadeWhereTheyArePackedFromAreTheSame) {
  const auto backend = make(2);
  for (const int64_t k : {8, 33, 129}) {
    GuardedTensor rows(*backend, weight_type(), 37, k);
    GuardedTensor x(*backend, activation(), 3, k);
    rows.fill_random(1);
    x.fill_random(2);
    const Weight packed = pack(*backend, rows);
    Weight w = backend->make_weight(weight_type(), 37, k);
    for (int64_t first = 0; first < 37; first += 9) {
      const Tensor some = rows.view().row_range(first, std::min<int64_t>(9, 37 - first));
      const Tensor made = backend->rows_to_pack(some.dtype, some.rows, some.cols);
      if (made.data == nullptr) return;
      for (int64_t i = 0; i < some.rows; ++i) {
        std::memcpy(made.at(i), some.at(i), static_cast<size_t>(k * element_size(some.dtype)));
      }
      backend->pack_rows(w, first, made);
    }
    GuardedTensor y(*backend, DType::kF32, 3, 37);
    GuardedTensor expected(*backend, DType::kF32, 3, 37);
    backend->matmul(y, x, w, nullptr);
    backend->matmul(expected, x, packed, nullptr);
    for (int64_t t = 0; t < 3; ++t) ASSERT_EQ(row_bytes(y, t), row_bytes(expected, t));
  }
}

TEST_P(OpsTest, MatmulOfEmptyShapes) {
  const auto backend = make(2);
  GuardedTensor x(*backend, activation(), 5, 0);
  GuardedTensor y(*backend, DType::kF32, 5, 33);
  const Readable<float> bias = random_vector(33, 3);
  backend->matmul(y, x, backend->make_weight(weight_type(), 33, 0), bias.data());
  expect_close(y, naive::matmul(naive::Matrix(5, 0), naive::Matrix(33, 0), bias.data()), 0);

  GuardedTensor wide(*backend, activation(), 0, 7);
  backend->matmul(y.view().row_range(0, 0), wide, backend->make_weight(weight_type(), 33, 7),
                  nullptr);
  backend->matmul(y.view().column_range(0, 0).row_range(0, 0), wide,
                  backend->make_weight(weight_type(), 0, 7), nullptr);
  expect_close(y, naive::matmul(naive::Matrix(5, 0), naive::Matrix(33, 0), bias.data()), 0);
}

TEST_P(OpsTest, EmbedReadsPackedRows) {
  const auto backend = make(2);
  for (const int64_t width : {1, 7, 33, 131}) {
    GuardedTensor rows(*backend, weight_type(), 71, width);
    rows.fill_random(4);
    const Weight table = pack(*backend, rows);
    const std::vector<int32_t> ids = {100, 170, 99, 171, 131, 132, 0, -5, 0x7FFFFFFF};
    const Readable<int32_t> ids_on_device(ids.begin(), ids.end());
    GuardedTensor y(*backend, DType::kF32, static_cast<int64_t>(ids.size()), width);
    backend->embed(y, ids_on_device.data(), table, 100);
    expect_close(y, naive::embed(ids, naive::read(rows), 100), 0);
  }
}

TEST_P(OpsTest, RmsNormHeadsMatchesNaive) {
  const auto backend = make(2);
  for (const auto& [heads, head_dim] : {std::pair{1, 1}, {3, 33}, {9, 64}, {33, 128}, {2, 7}}) {
    GuardedTensor x(*backend, DType::kF32, 33, heads * head_dim + 5);
    x.fill_random(20, 4.0f);
    const Readable<float> weight = random_vector(head_dim, 21);
    // The columns beside the heads belong to others.
    const Tensor part = x.view().column_range(2, heads * head_dim);
    naive::Matrix expected = naive::read(x);
    const naive::Matrix normed =
        naive::rms_norm_heads(naive::read(part), heads, weight.data(), 1e-6f);
    for (int64_t i = 0; i < normed.rows; ++i) {
      for (int64_t j = 0; j < normed.cols; ++j) expected.at(i, 2 + j) = normed.at(i, j);
    }
    backend->rms_norm_heads(part, heads, weight.data(), 1e-6f);
    expect_close(x, expected, kFp32Bound);
  }
}

TEST_P(OpsTest, RmsNormMatchesNaive) {
  const auto backend = make(2);
  for (const int64_t width : {1, 7, 33, 576, 4099}) {
    GuardedTensor x(*backend, DType::kF32, 33, width);
    x.fill_random(5, 4.0f);
    const Readable<float> weight = random_vector(width, 6);
    GuardedTensor y(*backend, activation(), 33, width);
    backend->rms_norm(y, x, weight.data(), 1e-5f);
    expect_close(y, naive::rms_norm(naive::read(x), weight.data(), 1e-5f), bound_of(activation()));
  }
}

// A kernel that takes several columns at once must take them one by one where rows are not aligned.
TEST_P(OpsTest, RmsNormOfAlignedRows) {
  const auto backend = make(2);
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 4}, {3, 4096}, {2, 8200}}) {
    GuardedTensor x(*backend, DType::kF32, rows, width, 64, 64);
    x.fill_random(22, 4.0f);
    const Readable<float> weight = random_vector(width, 23);
    GuardedTensor y(*backend, activation(), rows, width, 64, 64);
    backend->rms_norm(y, x, weight.data(), 1e-5f);
    expect_close(y, naive::rms_norm(naive::read(x), weight.data(), 1e-5f), bound_of(activation()));
    backend->rms_norm(x, x, weight.data(), 1e-5f);
    for (int64_t i = 0; activation() == DType::kF32 && i < rows; ++i) {
      EXPECT_EQ(row_bytes(x, i), row_bytes(y, i)) << "in place, row " << i;
    }
  }
}

TEST_P(OpsTest, AddRmsNormMatchesNaive) {
  const auto backend = make(2);
  for (const int64_t rows : {1, 33}) {
    for (const int64_t width : {1, 7, 33, 576, 4099, 8192, 8203}) {
      for (const int64_t gap : {3, 64}) {  // 64: rows that are aligned if their width is
        SCOPED_TRACE(testing::Message() << rows << " x " << width << ", gap " << gap);
        const int64_t guard = gap == 64 ? 64 : 37;
        const auto seed = static_cast<uint32_t>(rows + 7 * width + gap);
        GuardedTensor x(*backend, DType::kF32, rows, width, gap, guard);
        GuardedTensor h(*backend, DType::kF32, rows, width, gap, guard);
        GuardedTensor added(*backend, DType::kF32, rows, width, gap, guard);
        x.fill_random(seed, 4.0f);
        added.fill_random(seed, 4.0f);
        h.fill_random(seed + 1, 2.0f);
        const Readable<float> weight = random_vector(width, seed + 2);
        GuardedTensor y(*backend, activation(), rows, width, gap, guard);
        GuardedTensor apart(*backend, activation(), rows, width, gap, guard);

        naive::Matrix sum = naive::read(x);
        const naive::Matrix expected =
            naive::add_rms_norm(sum, naive::read(h), weight.data(), 1e-5f);
        backend->add_rms_norm(y, x, h, weight.data(), 1e-5f);
        expect_close(x, sum, kFp32Bound);
        expect_close(y, expected, bound_of(activation()));
        backend->add(added, h);
        backend->rms_norm(apart, added, weight.data(), 1e-5f);
        for (int64_t i = 0; i < rows; ++i) {
          ASSERT_EQ(row_bytes(x, i), row_bytes(added, i)) << "row " << i;
          ASSERT_EQ(row_bytes(y, i), row_bytes(apart, i)) << "row " << i;
        }
      }
    }
  }
}

constexpr Backend::Activation kActivations[] = {Backend::Activation::kSilu,
                                                Backend::Activation::kGeluTanh};

TEST_P(OpsTest, GatedActivationMatchesNaive) {
  const auto backend = make(2);
  for (const auto function : kActivations) {
    for (const int64_t width : {1, 7, 33, 2049}) {
      for (const float range : {0.1f, 4.0f, 20.0f}) {
        GuardedTensor x(*backend, DType::kF32, 33, 2 * width);
        x.fill_random(7, range);
        GuardedTensor y(*backend, activation(), 33, width);
        backend->gated_activation(y, x, function);
        expect_close(y, naive::gated_activation(naive::read(x), function),
                     activation() == DType::kF32 ? 1e-6 : kBf16Bound);
      }
    }
  }
}

TEST_P(OpsTest, MatmulAndGatedActivationAtOnceAreBoth) {
  const auto backend = make(2);
  for (const auto function : kActivations) {
    for (const int64_t rows : {1, 2, 3}) {
      for (const auto& [width, k] : {std::pair{1, 8}, {33, 64}, {70, 1100}, {5, 7}}) {
        for (const bool biased : {false, true}) {
          const Readable<float> bias = random_vector(2 * width, 41);
          GuardedTensor matrix(*backend, weight_type(), 2 * width, k);
          matrix.fill_random(42);
          const Weight w = pack(*backend, matrix);
          GuardedTensor x(*backend, activation(), rows, k, 8, 8);
          x.fill_random(43);
          GuardedTensor sums(*backend, DType::kF32, rows, 2 * width);
          GuardedTensor apart(*backend, activation(), rows, width);
          GuardedTensor y(*backend, activation(), rows, width);
          backend->matmul(sums, x, w, biased ? bias.data() : nullptr);
          backend->gated_activation(apart, sums, function);
          backend->matmul_gated(y, sums, x, w, biased ? bias.data() : nullptr, function);
          for (int64_t t = 0; t < rows; ++t) {
            ASSERT_EQ(row_bytes(y, t), row_bytes(apart, t))
                << rows << " x " << width << " x " << k << ", row " << t;
          }
        }
      }
    }
  }
}

// Values of the formula as its paper has it.
TEST_P(OpsTest, GeluTanhOfKnownValues) {
  const auto backend = make(1);
  const std::pair<float, double> known[] = {{-3, -0.0036373921},
                                            {-1, -0.1588080094},
                                            {0.5f, 0.3457140098},
                                            {1, 0.8411919906},
                                            {3, 2.9963626079}};
  GuardedTensor x(*backend, DType::kF32, 1, 10);
  for (int64_t i = 0; i < 5; ++i) {
    x.set(0, i, known[i].first);
    x.set(0, 5 + i, 1);
  }
  GuardedTensor y(*backend, DType::kF32, 1, 5);
  backend->gated_activation(y, x, Backend::Activation::kGeluTanh);
  for (int64_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(naive::element(y, 0, i), known[i].second, 1e-6 * std::abs(known[i].second));
  }
}

TEST_P(OpsTest, GatedActivationOfExtremes) {
  const auto backend = make(1);
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> gates = {-3e38f, -1000, -90, -0.0f, 0, 90, 1000, infinity, NAN};
  GuardedTensor x(*backend, DType::kF32, 1, 2 * static_cast<int64_t>(gates.size()));
  for (size_t i = 0; i < gates.size(); ++i) {
    x.set(0, static_cast<int64_t>(i), gates[i]);
    x.set(0, static_cast<int64_t>(gates.size() + i), 1);
  }
  for (const auto function : kActivations) {
    GuardedTensor y(*backend, activation(), 1, static_cast<int64_t>(gates.size()));
    backend->gated_activation(y, x, function);
    for (int64_t i = 1; i < 5; ++i) EXPECT_NEAR(naive::element(y, 0, i), 0, 1e-30) << i;
    EXPECT_NEAR(naive::element(y, 0, 5), 90, 0.5);
    EXPECT_NEAR(naive::element(y, 0, 6), 1000, 4);
    EXPECT_EQ(naive::element(y, 0, 7), infinity);
    EXPECT_TRUE(std::isnan(naive::element(y, 0, 8)));
  }
}

TEST_P(OpsTest, ScaleMatchesNaive) {
  const auto backend = make(2);
  for (const int64_t width : {1, 7, 33, 4097}) {
    GuardedTensor x(*backend, DType::kF32, 33, width);
    x.fill_random(18, 4.0f);
    const naive::Matrix expected = naive::scale(naive::read(x), 45.2548332f);
    backend->scale(x, 45.2548332f);
    expect_close(x, expected, 1e-7);
  }
}

TEST_P(OpsTest, SoftCapMatchesNaive) {
  const auto backend = make(2);
  for (const int64_t width : {1, 7, 33, 4097}) {
    for (const float range : {0.01f, 30.0f, 3000.0f}) {
      GuardedTensor x(*backend, DType::kF32, 33, width);
      x.fill_random(19, range);
      const naive::Matrix expected = naive::soft_cap(naive::read(x), 30);
      backend->soft_cap(x, 30);
      expect_close(x, expected, 1e-6);
    }
  }
}

TEST_P(OpsTest, SoftCapOfExtremes) {
  const auto backend = make(1);
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {0, -0.0f, 3e38f, -3e38f, infinity, -infinity, 1e-30f, NAN};
  const std::vector<float> capped = {0, 0, 50, -50, 50, -50, 1e-30f};
  GuardedTensor x(*backend, DType::kF32, 1, static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) x.set(0, static_cast<int64_t>(i), values[i]);
  backend->soft_cap(x, 50);
  for (size_t i = 0; i < capped.size(); ++i) {
    EXPECT_FLOAT_EQ(naive::element(x, 0, static_cast<int64_t>(i)), capped[i]) << i;
  }
  EXPECT_TRUE(std::isnan(naive::element(x, 0, 7))) << "a NaN must not hide";
}

RopeTable rope_table(const Readable<float>& cosines, const Readable<float>& sines,
                     int32_t num_positions, int32_t rotary_dim, bool adjacent) {
  RopeTable table;
  table.cos = cosines.data();
  table.sin = sines.data();
  table.num_positions = num_positions;
  table.rotary_dim = rotary_dim;
  table.adjacent = adjacent;
  return table;
}

TEST_P(OpsTest, RopeMatchesNaive) {
  const auto backend = make(2);
  for (const bool adjacent : {false, true}) {
    for (const auto& [heads, head_dim, rotary_dim] :
         {std::tuple{1, 2, 2}, {3, 33, 14}, {9, 64, 64}, {33, 128, 64}, {2, 7, 0}}) {
      const int64_t pairs = rotary_dim / 2;
      const Readable<float> cosines = random_vector(50 * pairs, 8);
      const Readable<float> sines = random_vector(50 * pairs, 9);
      const RopeTable table = rope_table(cosines, sines, 50, rotary_dim, adjacent);
      Readable<int32_t> positions;
      for (int32_t t = 0; t < 33; ++t) positions.push_back(t * 37 % 50);
      GuardedTensor x(*backend, DType::kF32, 33, heads * head_dim);
      x.fill_random(10);
      const naive::Matrix expected = naive::rope(naive::read(x), heads, positions.data(), table);
      backend->rope(x, heads, positions.data(), table);
      expect_close(x, expected, kFp32Bound);
    }
  }
}

// The bits of both operations, whether rows come in fours or not.
TEST_P(OpsTest, RopeAndStoreKvAtOnceAreBoth) {
  const auto backend = make(2);
  constexpr int32_t kKvHeads = 2, kBlocks = 3, kBlock = 5;
  for (const bool adjacent : {false, true}) {
    for (const auto& [q_heads, head_dim, rotary_dim, gap, guard] : {std::tuple{3, 64, 64, 4, 8},
                                                                    {16, 128, 64, 4, 4},
                                                                    {2, 64, 20, 0, 4},
                                                                    {2, 32, 28, 4, 4},
                                                                    {1, 33, 14, 3, 37},
                                                                    {2, 16, 0, 4, 4}}) {
      const Readable<float> cosines = random_vector(50 * rotary_dim / 2, 8);
      const Readable<float> sines = random_vector(50 * rotary_dim / 2, 9);
      const RopeTable table = rope_table(cosines, sines, 50, rotary_dim, adjacent);
      const Readable<int32_t> positions = {3, 49, 0, 17};
      const Readable<int32_t> slots = {13, 4, -1, 0};
      const int64_t kv_cols = int64_t{kKvHeads} * head_dim;
      const int64_t q_cols = int64_t{q_heads} * head_dim;
      GuardedTensor x(*backend, DType::kF32, 4, q_cols + 2 * kv_cols, gap, guard);
      GuardedTensor apart(*backend, DType::kF32, 4, q_cols + 2 * kv_cols, gap, guard);
      x.fill_random(31);
      apart.fill_random(31);
      std::vector<std::unique_ptr<GuardedTensor>> caches;
      KvLayer kv[2];
      for (KvLayer& cache : kv) {
        cache.dtype = activation();
        cache.num_blocks = kBlocks;
        cache.num_heads = kKvHeads;
        cache.block_size = kBlock;
        cache.head_dim = head_dim;
        for (void** part : {&cache.k, &cache.v}) {
          caches.push_back(std::make_unique<GuardedTensor>(
              *backend, cache.dtype, kKvHeads * kBlocks * kBlock, head_dim, 0, guard));
          *part = caches.back()->view().data;
        }
      }
      backend->rope_store_kv(x, kv[0], positions.data(), table, slots.data());
      backend->rope(apart.view().column_range(0, q_cols + kv_cols), q_heads + kKvHeads,
                    positions.data(), table);
      backend->store_kv(kv[1], apart.view().column_range(q_cols, kv_cols),
                        apart.view().column_range(q_cols + kv_cols, kv_cols), slots.data());
      const Tensor q = x.view().column_range(0, q_cols);
      for (int64_t t = 0; t < 4; ++t) {
        ASSERT_EQ(row_bytes(q, t), row_bytes(apart.view().column_range(0, q_cols), t)) << t;
      }
      for (int64_t row = 0; row < kKvHeads * kBlocks * kBlock; ++row) {
        ASSERT_EQ(row_bytes(*caches[0], row), row_bytes(*caches[2], row)) << "keys " << row;
        ASSERT_EQ(row_bytes(*caches[1], row), row_bytes(*caches[3], row)) << "values " << row;
      }
    }
  }
}

// Every kind of value must be rounded in the vector code as it is in dtype.cc.
TEST_P(OpsTest, StoreKvRoundsToTheSlots) {
  const auto backend = make(2);
  KvLayer kv;
  kv.dtype = activation();
  kv.num_blocks = 3;
  kv.num_heads = 3;
  kv.block_size = 5;
  kv.head_dim = 33;
  GuardedTensor keys(*backend, kv.dtype, 3 * 3 * 5, 33, 0);
  GuardedTensor values(*backend, kv.dtype, 3 * 3 * 5, 33, 0);
  kv.k = keys.view().data;
  kv.v = values.view().data;
  GuardedTensor k(*backend, DType::kF32, 3, 99);
  GuardedTensor v(*backend, DType::kF32, 3, 99);
  k.fill_random(12);
  v.fill_random(13);
  const float specials[] = {0.0f, -0.0f, 1e-40f, 3.4e38f, -INFINITY, NAN, 1.00390625f, 1.01171875f};
  for (int64_t i = 0; i < 8; ++i) k.set(0, i, specials[i]);
  const Readable<int32_t> slots = {13, 4, -1};
  backend->store_kv(kv, k, v, slots.data());
  int64_t touched = 0;
  for (int64_t t = 0; t < 2; ++t) {
    const int32_t slot = slots[static_cast<size_t>(t)];
    for (int64_t h = 0; h < 3; ++h) {
      const int64_t row = (slot / 5 * 3 + h) * 5 + slot % 5;
      for (const auto& [cache, source] : {std::pair{&keys, &k}, std::pair{&values, &v}}) {
        GuardedTensor want(*backend, kv.dtype, 1, 33);
        for (int64_t d = 0; d < 33; ++d) {
          want.set(0, d, *static_cast<const float*>(source->view().at(t, h * 33 + d)));
        }
        for (int64_t d = 0; d < 33; ++d) {
          const double got = naive::element(*cache, row, d);
          const double wanted = naive::element(want, 0, d);
          EXPECT_TRUE(got == wanted ? std::signbit(got) == std::signbit(wanted)
                                    : std::isnan(got) && std::isnan(wanted))
              << "token " << t << " head " << h << " channel " << d << ": " << got;
        }
      }
      ++touched;
    }
  }
  int64_t untouched = 0;
  for (int64_t row = 0; row < 45; ++row) {
    untouched += row_bytes(keys, row).find_first_not_of('\xFF') == std::string::npos;
  }
  EXPECT_EQ(untouched, 45 - touched);
}

TEST_P(OpsTest, AddMatchesNaive) {
  const auto backend = make(2);
  for (const int64_t width : {1, 7, 33, 4097}) {
    GuardedTensor x(*backend, DType::kF32, 33, width);
    GuardedTensor h(*backend, DType::kF32, 33, width, 5);
    x.fill_random(15);
    h.fill_random(16);
    const naive::Matrix expected = naive::add(naive::read(x), naive::read(h));
    backend->add(x, h);
    expect_close(x, expected, kFp32Bound);
  }
}

TEST_P(OpsTest, GatherRowsMatchesNaive) {
  const auto backend = make(2);
  GuardedTensor x(*backend, DType::kF32, 33, 131);
  x.fill_random(17);
  const std::vector<int32_t> rows = {32, 0, 0, 7, 31};
  const Readable<int32_t> rows_on_device(rows.begin(), rows.end());
  GuardedTensor y(*backend, DType::kF32, 5, 131);
  backend->gather_rows(y, x, rows_on_device.data());
  expect_close(y, naive::gather_rows(naive::read(x), rows), 0);
}

}  // namespace
}  // namespace trireme
