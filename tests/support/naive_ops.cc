// SPDX-License-Identifier: Apache-2.0
#include "tests/support/naive_ops.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/sizes.h"

namespace trireme::naive {
namespace {

double softly_capped(double value, double cap) { return cap * std::tanh(value / cap); }

double silu(double x) { return x / (1 + std::exp(-x)); }

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which keeps its digits where tanh is near -1.
double gelu_tanh(double x) {
  const double u = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return x / (1 + std::exp(-2 * u));
}

double at(const void* half, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(half)[index];
  return bf16_to_float(static_cast<const uint16_t*>(half)[index]);
}

// What one query head at one position sees.
struct View {
  const KvLayer& kv;
  const int32_t* blocks;  // the sequence's row of the block table
  int64_t kv_head = 0;
  int64_t position = 0;
  AttentionSpec spec;

  // Keys or values [n, D]: first the prefix, then the positions in the window.
  Matrix vectors(const void* prefix, const void* half) const {
    Matrix all(0, kv.head_dim);
    const auto append = [&](const void* from, int64_t row) {
      ++all.rows;
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        all.values.push_back(at(from, kv.dtype, row * kv.head_dim + d));
      }
    };
    for (int64_t i = 0; i < kv.prefix_length; ++i) append(prefix, kv_head * kv.prefix_length + i);
    for (int64_t p = 0; p <= position; ++p) {
      if (spec.window > 0 && p <= position - spec.window) continue;
      const int64_t block = blocks[p / kv.block_size];
      append(half, (block * kv.num_heads + kv_head) * kv.block_size + p % kv.block_size);
    }
    return all;
  }
};

std::vector<double> attend(const double* q, const View& view) {
  const KvLayer& kv = view.kv;
  const Matrix keys = view.vectors(kv.prefix_k, kv.k);
  std::vector<double> weights;
  for (int64_t i = 0; i < keys.rows; ++i) {
    double score = 0;
    for (int64_t d = 0; d < kv.head_dim; ++d) score += q[d] * keys.at(i, d);
    score *= view.spec.scale;
    weights.push_back(view.spec.softcap > 0 ? softly_capped(score, view.spec.softcap) : score);
  }
  const double highest = *std::max_element(weights.begin(), weights.end());
  double total = 0;
  for (double& weight : weights) total += weight = std::exp(weight - highest);
  const Matrix values = view.vectors(kv.prefix_v, kv.v);
  std::vector<double> y(static_cast<size_t>(kv.head_dim));
  for (int64_t i = 0; i < values.rows; ++i) {
    const double weight = weights[static_cast<size_t>(i)] / total;
    for (int64_t d = 0; d < kv.head_dim; ++d) y[static_cast<size_t>(d)] += weight * values.at(i, d);
  }
  return y;
}

}  // namespace

double element(const Tensor& t, int64_t i, int64_t j) {
  switch (t.dtype) {
    case DType::kF32: return *static_cast<const float*>(t.at(i, j));
    case DType::kBF16: return bf16_to_float(*static_cast<const uint16_t*>(t.at(i, j)));
    case DType::kF16: return fp16_to_float(*static_cast<const uint16_t*>(t.at(i, j)));
    case DType::kI32: return *static_cast<const int32_t*>(t.at(i, j));
    default: break;
  }
  return 0;
}

Matrix read(const Tensor& t) {
  Matrix m(t.rows, t.cols);
  for (int64_t i = 0; i < t.rows; ++i) {
    for (int64_t j = 0; j < t.cols; ++j) m.at(i, j) = element(t, i, j);
  }
  return m;
}

std::vector<QuantisedGroup> quantise(const Matrix& w, DType dtype) {
  const int most = dtype == DType::kI4 ? 7 : 127;
  std::vector<QuantisedGroup> groups;
  for (int64_t i = 0; i < w.rows; ++i) {
    for (int64_t first = 0; first < w.cols; first += kQuantGroup) {
      const int64_t end = std::min(first + kQuantGroup, w.cols);
      double largest = 0;
      for (int64_t j = first; j < end; ++j) largest = std::max(largest, std::fabs(w.at(i, j)));
      QuantisedGroup& group = groups.emplace_back();
      group.scale = bf16_to_float(float_to_bf16(static_cast<float>(largest) / most));
      if (group.scale < 0x1p-126) group.scale = 0;
      const float inverse = group.scale > 0 ? 1 / static_cast<float>(group.scale) : 0;
      for (int64_t j = first; j < end; ++j) {
        const float steps = static_cast<float>(w.at(i, j)) * inverse;  // ties as fp32 has them
        group.integers.push_back(std::clamp(static_cast<int>(std::lrint(steps)), -most, most));
      }
    }
  }
  return groups;
}

Matrix dequantise(const std::vector<QuantisedGroup>& groups, int64_t rows, int64_t cols) {
  Matrix w(rows, cols);
  const int64_t of_row = (cols + kQuantGroup - 1) / kQuantGroup;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const QuantisedGroup& group = groups[static_cast<size_t>(i * of_row + j / kQuantGroup)];
      w.at(i, j) = group.scale * group.integers[static_cast<size_t>(j % kQuantGroup)];
    }
  }
  return w;
}

Matrix embed(const std::vector<int32_t>& ids, const Matrix& table, int32_t first_row) {
  Matrix y(static_cast<int64_t>(ids.size()), table.cols);
  for (int64_t t = 0; t < y.rows; ++t) {
    const int64_t row = int64_t{ids[static_cast<size_t>(t)]} - first_row;
    if (row < 0 || row >= table.rows) continue;
    for (int64_t j = 0; j < y.cols; ++j) y.at(t, j) = table.at(row, j);
  }
  return y;
}

Matrix rms_norm(const Matrix& x, const float* weight, double eps) {
  Matrix y(x.rows, x.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (int64_t j = 0; j < x.cols; ++j) squares += x.at(t, j) * x.at(t, j);
    const double root = std::sqrt(squares / static_cast<double>(x.cols) + eps);
    for (int64_t j = 0; j < x.cols; ++j) y.at(t, j) = x.at(t, j) / root * weight[j];
  }
  return y;
}

Matrix add_rms_norm(Matrix& x, const Matrix& h, const float* weight, double eps) {
  x = add(x, h);
  return rms_norm(x, weight, eps);
}

Matrix rms_norm_heads(const Matrix& x, int32_t num_heads, const float* weight, double eps) {
  Matrix heads = x;  // the same values, a head per row
  heads.rows = x.rows * num_heads;
  heads.cols = x.cols / num_heads;
  Matrix y = rms_norm(heads, weight, eps);
  y.rows = x.rows;
  y.cols = x.cols;
  return y;
}

Matrix matmul(const Matrix& x, const Matrix& w, const float* bias) {
  Matrix y(x.rows, w.rows);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t n = 0; n < w.rows; ++n) {
      double sum = bias == nullptr ? 0 : bias[n];
      for (int64_t k = 0; k < x.cols; ++k) sum += x.at(t, k) * w.at(n, k);
      y.at(t, n) = sum;
    }
  }
  return y;
}

Matrix rope(const Matrix& x, int32_t num_heads, const int32_t* positions, const RopeTable& table) {
  Matrix y = x;
  const int64_t pairs = table.rotary_dim / 2;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t h = 0; h < num_heads; ++h) {
      for (int64_t i = 0; i < pairs; ++i) {
        const int64_t head = h * (x.cols / num_heads);
        const int64_t first = head + (table.adjacent ? 2 * i : i);
        const int64_t second = head + (table.adjacent ? 2 * i + 1 : i + pairs);
        const double cosine = table.cos[positions[t] * pairs + i];
        const double sine = table.sin[positions[t] * pairs + i];
        y.at(t, first) = x.at(t, first) * cosine - x.at(t, second) * sine;
        y.at(t, second) = x.at(t, second) * cosine + x.at(t, first) * sine;
      }
    }
  }
  return y;
}

Matrix attention(const Matrix& q, const KvLayer& kv, const BatchView& batch, const HeadMap& heads,
                 const AttentionSpec& spec) {
  Matrix y(q.rows, q.cols);
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    for (int64_t t = batch.query_begin[s]; t < batch.query_begin[s + 1]; ++t) {
      const int64_t position = batch.context[s] - (batch.query_begin[s + 1] - t);
      for (int64_t h = 0; h < q.cols / kv.head_dim; ++h) {
        const int64_t kv_head = (heads.first_head + h) / heads.group - heads.first_kv_head;
        const View view = {kv, batch.block_tables + s * batch.max_blocks, kv_head, position, spec};
        const std::vector<double> row =
            attend(&q.values[static_cast<size_t>(t * q.cols + h * kv.head_dim)], view);
        for (int64_t d = 0; d < kv.head_dim; ++d) {
          y.at(t, h * kv.head_dim + d) = row[static_cast<size_t>(d)];
        }
      }
    }
  }
  return y;
}

Matrix add(const Matrix& x, const Matrix& h) {
  Matrix y = x;
  for (size_t i = 0; i < y.values.size(); ++i) y.values[i] += h.values[i];
  return y;
}

Matrix scale(const Matrix& x, double factor) {
  Matrix y = x;
  for (double& value : y.values) value *= factor;
  return y;
}

Matrix soft_cap(const Matrix& x, double cap) {
  Matrix y = x;
  for (double& value : y.values) value = softly_capped(value, cap);
  return y;
}

Matrix gated_activation(const Matrix& gate_up, Backend::Activation activation) {
  const auto function = activation == Backend::Activation::kSilu ? silu : gelu_tanh;
  Matrix y(gate_up.rows, gate_up.cols / 2);
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t j = 0; j < y.cols; ++j) {
      y.at(t, j) = function(gate_up.at(t, j)) * gate_up.at(t, y.cols + j);
    }
  }
  return y;
}

Matrix gather_rows(const Matrix& x, const std::vector<int32_t>& rows) {
  Matrix y(static_cast<int64_t>(rows.size()), x.cols);
  for (int64_t i = 0; i < y.rows; ++i) {
    for (int64_t j = 0; j < y.cols; ++j) y.at(i, j) = x.at(rows[static_cast<size_t>(i)], j);
  }
  return y;
}

}  // namespace trireme::naive
