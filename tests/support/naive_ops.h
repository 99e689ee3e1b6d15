// SPDX-License-Identifier: Apache-2.0
// The operations of Backend as obvious loops in double precision: the specification that every
// backend is compared with. Shapes and letters as in kernels/backend.h.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace trireme::naive {

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> values;

  Matrix(int64_t rows_in, int64_t cols_in)
      : rows(rows_in), cols(cols_in), values(static_cast<size_t>(rows_in * cols_in)) {}
  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * cols + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * cols + j)]; }
};

// Element (i, j) of a tensor in host memory, of any type.
double element(const Tensor& t, int64_t i, int64_t j);
Matrix read(const Tensor& t);

// What Backend::make_quantised says, of a whole matrix: its groups row by row.
struct QuantisedGroup {
  double scale = 0;
  std::vector<int> integers;
};
std::vector<QuantisedGroup> quantise(const Matrix& w, DType dtype);
Matrix dequantise(const std::vector<QuantisedGroup>& groups, int64_t rows, int64_t cols);

Matrix embed(const std::vector<int32_t>& ids, const Matrix& table, int32_t first_row);
Matrix rms_norm(const Matrix& x, const float* weight, double eps);
// x += h, in place; returns its norm.
Matrix add_rms_norm(Matrix& x, const Matrix& h, const float* weight, double eps);
Matrix rms_norm_heads(const Matrix& x, int32_t num_heads, const float* weight, double eps);
Matrix matmul(const Matrix& x, const Matrix& w, const float* bias);
Matrix rope(const Matrix& x, int32_t num_heads, const int32_t* positions, const RopeTable& table);
Matrix attention(const Matrix& q, const KvLayer& kv, const BatchView& batch, const HeadMap& heads,
                 const AttentionSpec& spec);
Matrix add(const Matrix& x, const Matrix& h);
Matrix scale(const Matrix& x, double factor);
Matrix soft_cap(const Matrix& x, double cap);
Matrix gated_activation(const Matrix& gate_up, Backend::Activation activation);
Matrix gather_rows(const Matrix& x, const std::vector<int32_t>& rows);

}  // namespace trireme::naive
