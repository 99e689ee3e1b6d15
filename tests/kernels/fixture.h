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
#include "tests/support/naive_ops.h"

namespace trireme {

// A tensor in memory of the backend, filled with a NaN pattern: before, between and after its rows
// too, where nothing may change.
class GuardedTensor {
 public:
  GuardedTensor(Backend& backend, DType dtype, int64_t rows, int64_t cols, int64_t gap = 3)
      : buffer_(backend.allocate(
            static_cast<size_t>((2 * kGuard + rows * (cols + gap)) * element_size(dtype)))),
        view_(static_cast<std::byte*>(buffer_.data()) + kGuard * element_size(dtype), dtype, rows,
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
      case DType::kI32: *static_cast<int32_t*>(view_.at(i, j)) = static_cast<int32_t>(value);
    }
  }

  // Every byte outside of the rows is as it was.
  bool guards_whole() const {
    const int64_t size = element_size(view_.dtype);
    const auto* bytes = static_cast<const unsigned char*>(buffer_.data());
    for (int64_t e = 0; e < static_cast<int64_t>(buffer_.bytes()) / size; ++e) {
      const int64_t at = e - kGuard;
      const bool inside =
          at >= 0 && at < view_.rows * view_.stride && at % view_.stride < view_.cols;
      for (int64_t b = 0; !inside && b < size; ++b) {
        if (bytes[e * size + b] != 0xFF) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 37;  // odd: rows are not aligned
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

inline double bound_of(DType dtype) { return dtype == DType::kF32 ? kFp32Bound : kBf16Bound; }

inline std::string row_bytes(const Tensor& t, int64_t row) {
  return {static_cast<const char*>(t.at(row)), static_cast<size_t>(t.cols * element_size(t.dtype))};
}

inline std::vector<float> random_vector(int64_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = uniform(random);
  return values;
}

using Path = std::tuple<std::string, DType>;

class BackendTest : public testing::TestWithParam<Path> {
 protected:
  std::unique_ptr<Backend> make(int threads) const {
    BackendOptions options;
    options.threads = threads;
    options.isa = std::get<0>(GetParam());
    return make_backend(options);
  }
  DType weight_type() const { return std::get<1>(GetParam()); }
  DType activation() const { return activation_dtype(weight_type()); }
};

inline std::vector<std::string> isas() {
  const auto present = cpu_isas();
  return {present.begin(), present.end()};
}

inline auto all_paths() {
  return testing::Combine(testing::ValuesIn(isas()),
                          testing::Values(DType::kF32, DType::kBF16, DType::kF16));
}

inline std::string path_name(const testing::TestParamInfo<Path>& info) {
  return std::get<0>(info.param) + "_" + dtype_name(std::get<1>(info.param));
}

// A batch and its cache: sequences with the given contexts, of which the last `queries` tokens are
// in the micro-batch. Blocks are handed out in a scattered order; positions past the context hold
// NaN.
struct PagedBatch {
  PagedBatch(Backend& backend, DType dtype, int32_t kv_heads, int32_t head_dim, int32_t block_size,
             const std::vector<int32_t>& contexts, const std::vector<int32_t>& queries) {
    set_queries(contexts, queries);
    int32_t total = 0;
    for (const int32_t length : contexts) {
      const int32_t blocks = (length + block_size - 1) / block_size;
      view.max_blocks = std::max(view.max_blocks, blocks);
      total += blocks;
    }
    kv.dtype = dtype;
    kv.num_blocks = total + 2;
    kv.num_heads = kv_heads;
    kv.block_size = block_size;
    kv.head_dim = head_dim;
    const int64_t rows = int64_t{kv.num_blocks} * kv_heads * block_size;
    keys = std::make_unique<GuardedTensor>(backend, dtype, rows, head_dim, 0);
    values = std::make_unique<GuardedTensor>(backend, dtype, rows, head_dim, 0);
    kv.k = keys->view().data;
    kv.v = values->view().data;
    std::vector<int32_t> free_blocks;
    for (int32_t i = 0; i < kv.num_blocks; ++i) free_blocks.push_back(i);
    std::shuffle(free_blocks.begin(), free_blocks.end(), std::mt19937(7));
    tables.assign(contexts.size() * static_cast<size_t>(view.max_blocks), 0);
    std::mt19937 random(11);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (size_t s = 0; s < contexts.size(); ++s) {
      for (int32_t p = 0; p < contexts[s]; ++p) {
        auto* block =
            &tables[s * static_cast<size_t>(view.max_blocks) + static_cast<size_t>(p / block_size)];
        if (p % block_size == 0) {
          *block = free_blocks.back();
          free_blocks.pop_back();
        }
        for (int32_t h = 0; h < kv_heads; ++h) {
          const int64_t row = (int64_t{*block} * kv_heads + h) * block_size + p % block_size;
          for (int32_t d = 0; d < head_dim; ++d) {
            keys->set(row, d, 3 * uniform(random));
            values->set(row, d, uniform(random));
          }
        }
      }
    }
    view.block_tables = tables.data();
  }

  // Random learned keys and values before the cache.
  void set_prefix(Backend& backend, int32_t length, uint32_t seed) {
    prefix_keys = std::make_unique<GuardedTensor>(backend, kv.dtype, int64_t{kv.num_heads} * length,
                                                  kv.head_dim, 0);
    prefix_values = std::make_unique<GuardedTensor>(backend, kv.dtype,
                                                    int64_t{kv.num_heads} * length, kv.head_dim, 0);
    prefix_keys->fill_random(seed, 3);
    prefix_values->fill_random(seed + 1);
    kv.prefix_k = prefix_keys->view().data;
    kv.prefix_v = prefix_values->view().data;
    kv.prefix_length = length;
  }

  void set_queries(const std::vector<int32_t>& contexts, const std::vector<int32_t>& queries) {
    context = contexts;
    query_begin = {0};
    for (const int32_t count : queries) query_begin.push_back(query_begin.back() + count);
    view.num_tokens = query_begin.back();
    view.num_sequences = static_cast<int32_t>(contexts.size());
    view.query_begin = query_begin.data();
    view.context = context.data();
  }

  KvLayer kv;
  BatchView view;
  std::vector<int32_t> context;
  std::vector<int32_t> query_begin;
  std::vector<int32_t> tables;
  std::unique_ptr<GuardedTensor> keys;
  std::unique_ptr<GuardedTensor> values;
  std::unique_ptr<GuardedTensor> prefix_keys;
  std::unique_ptr<GuardedTensor> prefix_values;
};

}  // namespace trireme
