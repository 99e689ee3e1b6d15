// SPDX-License-Identifier: Apache-2.0
// Weights of int8 and int4 on GPUs: the integers themselves beside those of the formula, and
// products beside the naive twin on what these stand for.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/sizes.h"
#include "tests/kernels/fixture.h"
#include "tests/support/naive_ops.h"

namespace trireme {
namespace {

class QuantisedTest : public BackendTest {
 protected:
  // Channels [first, first + k) of the matrix, packed in pieces, out of order.
  Weight pack(Backend& backend, const Tensor& whole, int64_t first, int64_t k) const {
    Weight w = backend.make_quantised(weight_type(), whole.rows, k, first, whole.cols);
    EXPECT_EQ(w.storage.bytes(),
              static_cast<size_t>(quantised_weight_bytes(weight_type(), whole.rows, k, first)));
    const Tensor rows = whole.column_range(first - w.lead, w.lead + k + w.tail);
    const int64_t cut = whole.rows / 3;
    backend.pack_rows(w, cut, rows.row_range(cut, rows.rows - cut));
    backend.pack_rows(w, 0, rows.row_range(0, cut));
    return w;
  }
  Weight pack(Backend& backend, const Tensor& whole) const {
    return pack(backend, whole, 0, whole.cols);
  }
  std::vector<naive::QuantisedGroup> groups(const Tensor& whole) const {
    return naive::quantise(naive::read(whole), weight_type());
  }
  naive::Matrix values(const Tensor& whole) const {
    return naive::dequantise(groups(whole), whole.rows, whole.cols);
  }
};

std::vector<Path> quantised_paths() {
  std::vector<Path> paths;
  if (!gpu_memory_is_readable() || cuda_devices().devices.empty()) return paths;
  for (const DType dtype : {DType::kI8, DType::kI4}) paths.emplace_back("cuda", dtype);
  return paths;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantisedTest);
INSTANTIATE_TEST_SUITE_P(Cuda, QuantisedTest, testing::ValuesIn(quantised_paths()), path_name);

naive::Matrix columns(const naive::Matrix& m, int64_t first, int64_t count) {
  naive::Matrix part(m.rows, count);
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < count; ++j) part.at(i, j) = m.at(i, first + j);
  }
  return part;
}

// With an x of unit vectors every value of w shows, and fp32 holds it exactly.
void expect_values(Backend& backend, const Weight& w, const naive::Matrix& expected) {
  for (int64_t first = 0, rows = 1; first < w.k; first += rows, rows = rows % 64 * 2 + 1) {
    const int64_t count = std::min(rows, w.k - first);
    GuardedTensor x(backend, DType::kBF16, count, w.k);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < w.k; ++j) x.set(i, j, j == first + i ? 1.0f : 0.0f);
    }
    GuardedTensor y(backend, DType::kF32, count, w.n);
    backend.matmul(y, x, w, nullptr);
    // More rows go through bf16.
    const double bound = count > 64 ? 0x1p-8 : 0;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t n = 0; n < w.n; ++n) {
        const double want = expected.at(n, first + i);
        ASSERT_NEAR(naive::element(y, i, n), want, bound * std::fabs(want))
            << "row " << n << ", channel " << first + i << ", beside " << count << " others";
      }
    }
    EXPECT_TRUE(y.guards_whole());
  }
}

TEST_P(QuantisedTest, TheIntegersAreTheFormulas) {
  const auto backend = make(1);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const auto& [n, k] : {std::pair{1, 1}, {33, 7}, {16, 128}, {17, 331}}) {
      SCOPED_TRACE(testing::Message() << dtype_name(type) << " " << n << " x " << k);
      GuardedTensor rows(*backend, type, n, k);
      rows.fill_random(1);
      expect_values(*backend, pack(*backend, rows), values(rows));
    }
  }
}

// |w - q · scale| <= scale / 2: the largest of a group is within half a step too, though the scale
// was rounded.
TEST_P(QuantisedTest, ValuesComeBackWithinHalfAStep) {
  const auto backend = make(1);
  GuardedTensor rows(*backend, DType::kF32, 40, 640);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < 640; ++j) {
      rows.set(i, j,
               std::ldexp(std::sin(static_cast<float>(i * 640 + j)), static_cast<int>(i) - 20));
    }
  }
  const auto expected = groups(rows);
  const naive::Matrix whole = values(rows);
  double worst = 0;
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < 640; ++j) {
      const double scale = expected[static_cast<size_t>(i * 5 + j / 128)].scale;
      const double error = std::fabs(naive::element(rows, i, j) - whole.at(i, j));
      worst = std::max(worst, error / scale);
    }
  }
  EXPECT_LE(worst, 0.5 * (1 + 1e-5));
  EXPECT_GT(worst, 0.49);
  expect_values(*backend, pack(*backend, rows), whole);
}

struct Shape {
  int64_t t, n, k;
};

TEST_P(QuantisedTest, MatmulMatchesNaive) {
  const auto backend = make(1);
  const std::vector<Shape> shapes = {{1, 1, 1},     {1, 257, 129},  {1, 64, 2048}, {2, 64, 64},
                                     {3, 96, 1031}, {7, 33, 1},     {8, 40, 4096}, {9, 48, 1288},
                                     {13, 31, 255}, {16, 161, 512}, {17, 32, 32},  {31, 200, 640},
                                     {33, 65, 513}, {48, 161, 97},  {64, 130, 8},  {64, 48, 1100},
                                     {65, 33, 300}, {100, 65, 513}, {0, 33, 128},  {130, 33, 2101}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << shape.t << " x " << shape.n << " x " << shape.k);
    GuardedTensor rows(*backend, DType::kBF16, shape.n, shape.k);
    // Rows that are aligned are read as they are.
    const int64_t gap = shape.k % 8 == 0 ? 8 : 3;
    GuardedTensor x(*backend, DType::kBF16, shape.t, shape.k, gap, shape.k % 8 == 0 ? 64 : 37);
    rows.fill_random(1);
    x.fill_random(2);
    const Weight w = pack(*backend, rows);
    const Readable<float> bias = random_vector(shape.n, 3);
    const naive::Matrix integers = values(rows);
    for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
      for (const int repeat : {0, 1}) {  // counters of the first are as they were
        GuardedTensor y(*backend, DType::kF32, shape.t, shape.n);
        backend->matmul(y, x, w, b);
        expect_close_rows(y, naive::matmul(naive::read(x), integers, b),
                          shape.t > 64 ? kBf16Bound : 1e-5);
        if (testing::Test::HasFailure()) FAIL() << "repeat " << repeat;
      }
    }
  }
}

TEST_P(QuantisedTest, DeterministicRowsDoNotDependOnOthers) {
  BackendOptions options;
  options.device = "cuda";
  options.deterministic = true;
  const auto backend = make_backend(options);
  GuardedTensor rows(*backend, DType::kBF16, 70, 300);
  GuardedTensor x(*backend, DType::kBF16, 70, 300);
  rows.fill_random(1);
  x.fill_random(2);
  const Weight w = pack(*backend, rows);
  GuardedTensor all(*backend, DType::kF32, 70, 70);
  backend->matmul(all, x, w, nullptr);
  expect_close_rows(all, naive::matmul(naive::read(x), values(rows), nullptr), kBf16Bound);
  for (const int64_t count : {1, 5, 64}) {
    GuardedTensor y(*backend, DType::kF32, count, 70);
    backend->matmul(y, x.view().row_range(0, count), w, nullptr);
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(row_bytes(y, i), row_bytes(all, i));
  }
}

// What ranks have of K: the same integers as the whole, wherever it is cut.
TEST_P(QuantisedTest, PartsOfKHaveTheScalesOfTheWhole) {
  const auto backend = make(1);
  GuardedTensor whole(*backend, DType::kF32, 21, 700);
  whole.fill_random(4);
  const naive::Matrix expected = values(whole);
  GuardedTensor x(*backend, DType::kBF16, 9, 700, 4, 40);
  x.fill_random(5);
  for (const int64_t step : {96, 128, 175, 350}) {
    for (int64_t first = 0; first < 700; first += step) {
      SCOPED_TRACE(testing::Message() << first << " of steps of " << step);
      const int64_t k = std::min(step, 700 - first);
      const Weight w = pack(*backend, whole, first, k);
      EXPECT_LT(w.lead, kQuantGroup);
      EXPECT_LE(first + k + w.tail, 700);
      const Tensor part = x.view().column_range(first, k);
      for (const int64_t t : {3, 9}) {
        GuardedTensor y(*backend, DType::kF32, t, 21);
        backend->matmul(y, part.row_range(0, t), w, nullptr);
        expect_close_rows(y,
                          naive::matmul(columns(naive::read(x.view().row_range(0, t)), first, k),
                                        columns(expected, first, k), nullptr),
                          1e-5);
      }
      if (step == 175) expect_values(*backend, w, columns(expected, first, k));
    }
  }
}

TEST_P(QuantisedTest, GroupsOfExtremes) {
  const auto backend = make(1);
  GuardedTensor rows(*backend, DType::kF32, 7, 256);
  rows.fill_random(6);
  for (int64_t j = 0; j < 128; ++j) {
    const float wave = std::sin(static_cast<float>(j));
    rows.set(0, j, j % 2 == 0 ? 0.0f : -0.0f);
    rows.set(1, j, 1e-40f * wave);  // what fp32 hardly holds is 0
    rows.set(2, j, 3.3e38f * wave);
    rows.set(3, j, j == 77 ? 1.0f : 0.0f);
    rows.set(4, j, 1e-36f * wave);
    rows.set(5, j, -1.0f);
  }
  expect_values(*backend, pack(*backend, rows), values(rows));
  // A value that is none must not hide: the row's products are none.
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    rows.set(6, 130, value);
    const Weight w = pack(*backend, rows);
    for (const int64_t t : {1, 20, 70}) {
      GuardedTensor x(*backend, DType::kBF16, t, 256);
      for (int64_t i = 0; i < t; ++i) {
        for (int64_t j = 0; j < 256; ++j) x.set(i, j, j == 200 ? 1.0f : 0.0f);
      }
      GuardedTensor y(*backend, DType::kF32, t, 7);
      backend->matmul(y, x, w, nullptr);
      for (int64_t i = 0; i < t; ++i) {
        EXPECT_TRUE(std::isnan(naive::element(y, i, 6)));
        EXPECT_FALSE(std::isnan(naive::element(y, i, 5)));
      }
    }
  }
}

TEST_P(QuantisedTest, EmptyShapes) {
  const auto backend = make(1);
  GuardedTensor x(*backend, DType::kBF16, 5, 0);
  GuardedTensor y(*backend, DType::kF32, 5, 33);
  const Readable<float> bias = random_vector(33, 3);
  Weight none = backend->make_quantised(weight_type(), 33, 0, 96, 200);
  GuardedTensor rows(*backend, DType::kF32, 33, none.lead + none.tail);
  rows.fill_random(1);
  backend->pack_rows(none, 0, rows);
  backend->matmul(y, x, none, bias.data());
  expect_close(y, naive::matmul(naive::Matrix(5, 0), naive::Matrix(33, 0), bias.data()), 0);
}

TEST(QuantisedOnCpus, IsRefused) {
  for (const std::string& isa : isas()) {
    BackendOptions options;
    options.isa = isa;
    try {
      make_backend(options)->make_quantised(DType::kI4, 32, 128, 0, 128);
      FAIL() << isa << " has weights of int4";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kFailedPrecondition);
      EXPECT_NE(std::string(error.what()).find("cannot keep weights of int4 on cpu"),
                std::string::npos)
          << error.what();
      EXPECT_NE(std::string(error.what()).find("--dtype bf16"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace trireme
