// SPDX-License-Identifier: Apache-2.0
// What the tests of a backend's operations share: every ISA path of this machine x every weight
// type, and tensors that show a forgotten or a stray write.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/naive_ops.h"
#include "tests/support/readable_memory.h"

namespace trireme {

// A tensor in memory of the backend, filled with a NaN pattern: before, between and after its rows
// too, where nothing may change.
class GuardedTensor {
 public:
  // guard: elements before and after; odd, so that rows are not aligned, if nothing else is said.
  GuardedTensor(Backend& backend, DType dtype, int64_t rows, int64_t cols, int64_t gap = 3,
                int64_t guard = 37)
      : guard_(guard),
        buffer_(backend.allocate(
            static_cast<size_t>((2 * guard + rows * (cols + gap)) * element_size(dtype)))),
        view_(static_cast<std::byte*>(buffer_.data()) + guard * element_size(dtype), dtype, rows,
              cols) {
    view_.stride = cols + gap;
    std::memset(buffer_.data(), 0xFF, buffer_.bytes());
  }

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

  void fill_random(uint32_t seed, float scale = 1.0f) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-scale, scale);
    for (int64_t i = 0; i < view_.rows; ++i) {
      for (int64_t j = 0; j < view_.cols; ++j) set(i, j, uniform(random));
    }
  }

  void set(int64_t i, int64_t j, float value) {
    switch (view_.dtype) {
      case DType::kF32: *static_cast<float*>(view_.at(i, j)) = value; break;
      case DType::kBF16: *static_cast<uint16_t*>(view_.at(i, j)) = float_to_bf16(value); break;
      case DType::kF16: *static_cast<uint16_t*>(view_.at(i, j)) = float_to_fp16(value); break;
      case DType::kI32: *static_cast<int32_t*>(view_.at(i, j)) = static_cast<int32_t>(value); break;
      default: FAIL() << "no tensor is of " << dtype_name(view_.dtype);
    }
  }

  // Every byte outside of the rows is as it was.
  bool guards_whole() const {
    const int64_t size = element_size(view_.dtype);
    const auto* bytes = static_cast<const unsigned char*>(buffer_.data());
    for (int64_t e = 0; e < static_cast<int64_t>(buffer_.bytes()) / size; ++e) {
      const int64_t at = e - guard_;
      const bool inside =
          at >= 0 && at < view_.rows * view_.stride && at % view_.stride < view_.cols;
      for (int64_t b = 0; !inside && b < size; ++b) {
        if (bytes[e * size + b] != 0xFF) return false;
      }
    }
    return true;
  }

 private:
  int64_t guard_;
  Buffer buffer_;
  Tensor view_;
};

// Of an operation whose result is rounded to fp32, and to bf16.
constexpr double kFp32Bound = 1e-5;
constexpr double kBf16Bound = 1e-2;

// |y - expected| <= bound · max(|expected|, the row's root mean square, kTiny), and nothing beside
// y changed.
inline void expect_close(const GuardedTensor& y, const naive::Matrix& expected, double bound) {
  ASSERT_EQ(y.view().rows, expected.rows);
  ASSERT_EQ(y.view().cols, expected.cols);
  constexpr double kTiny = 1e-25;  // below it fp32's exponents end
  for (int64_t i = 0; i < expected.rows; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < expected.cols; ++j) squares += std::pow(expected.at(i, j), 2);
    const double scale = std::sqrt(squares / static_cast<double>(expected.cols));
    for (int64_t j = 0; j < expected.cols; ++j) {
      const double want = expected.at(i, j);
      const double got = naive::element(y, i, j);
      ASSERT_LE(std::abs(got - want), bound * std::max({std::abs(want), scale, kTiny}))
          << "row " << i << " column " << j << ": " << got << " instead of " << want;
    }
  }
  EXPECT_TRUE(y.guards_whole()) << "wrote outside of its rows";
}

// |y - expected| <= bound · |expected| as vectors, row by row: where single elements are sums of
// terms that were rounded, and much smaller than these.
inline void expect_close_rows(const GuardedTensor& y, const naive::Matrix& expected, double bound) {
  for (int64_t i = 0; i < expected.rows; ++i) {
    double errors = 0;
    double squares = 0;
    for (int64_t j = 0; j < expected.cols; ++j) {
      errors += std::pow(naive::element(y, i, j) - expected.at(i, j), 2);
      squares += std::pow(expected.at(i, j), 2);
    }
    ASSERT_LE(std::sqrt(errors), bound * std::sqrt(squares)) << "row " << i;
  }
  EXPECT_TRUE(y.guards_whole()) << "wrote outside of its rows";
}

inline double bound_of(DType dtype) { return dtype == DType::kF32 ? kFp32Bound : kBf16Bound; }

inline std::string row_bytes(const Tensor& t, int64_t row) {
  return {static_cast<const char*>(t.at(row)), static_cast<size_t>(t.cols * element_size(t.dtype))};
}

inline Readable<float> random_vector(int64_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Readable<float> values(static_cast<size_t>(n));
  for (float& value : values) value = uniform(random);
  return values;
}

using Path = std::tuple<std::string, DType>;

class BackendTest : public testing::TestWithParam<Path> {
 protected:
  std::unique_ptr<Backend> make(int threads) const {
    BackendOptions options;
    options.threads = threads;
    const std::string& path = std::get<0>(GetParam());
    (path == "cuda" ? options.device : options.isa) = path;
    return make_backend(options);
  }
  bool on_gpu() const { return std::get<0>(GetParam()) == "cuda"; }
  DType weight_type() const { return std::get<1>(GetParam()); }
  DType activation() const { return activation_dtype(weight_type()); }
};

inline std::vector<std::string> isas() {
  const auto present = cpu_isas();
  return {present.begin(), present.end()};
}

inline auto paths(const std::vector<std::string>& names) {
  return testing::Combine(testing::ValuesIn(names),
                          testing::Values(DType::kF32, DType::kBF16, DType::kF16));
}

inline auto all_paths() { return paths(isas()); }

// "cuda" in a program that can look into its memory, and has one: emulated (which runs on every
// machine) or real.
inline auto gpu_paths() {
  const bool can = gpu_memory_is_readable() && !cuda_devices().devices.empty();
  return paths(can ? std::vector<std::string>{"cuda"} : std::vector<std::string>{});
}

inline std::string path_name(const testing::TestParamInfo<Path>& info) {
  return std::get<0>(info.param) + "_" + dtype_name(std::get<1>(info.param));
}

}  // namespace trireme
