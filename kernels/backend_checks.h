// SPDX-License-Identifier: Apache-2.0
// What every backend asks of its arguments, as backend.h says it. For bugs of callers: CHECK.
#pragma once

#include <string>

#include "kernels/backend.h"
#include "kernels/base/check.h"

namespace trireme {

inline std::string shape(const Tensor& t) {
  return std::string(dtype_name(t.dtype)) + " [" + std::to_string(t.rows) + ", " +
         std::to_string(t.cols) + "] stride " + std::to_string(t.stride);
}

inline void check_tensor(const Tensor& t, bool right_type, int64_t rows, int64_t cols) {
  CHECK(right_type && t.rows == rows && t.cols == cols && t.stride >= cols,
        "got " + shape(t) + ", needed [" + std::to_string(rows) + ", " + std::to_string(cols) +
            "] of the type that backend.h says");
  CHECK(t.data != nullptr || rows == 0 || cols == 0, "no data: " + shape(t));
}

inline void check_fp32(const Tensor& t, int64_t rows, int64_t cols) {
  check_tensor(t, t.dtype == DType::kF32, rows, cols);
}

inline bool is_activation(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

inline void check_add_rms_norm(const Tensor& y, const Tensor& x, const Tensor& h) {
  check_tensor(y, is_activation(y.dtype), x.rows, x.cols);
  check_fp32(x, x.rows, x.cols);
  check_fp32(h, x.rows, x.cols);
}

inline void check_kv(const KvLayer& kv) {
  CHECK(is_activation(kv.dtype) && kv.head_dim > 0 && kv.block_size > 0,
        std::string("a cache of ") + dtype_name(kv.dtype));
}

inline void check_attention(const KvLayer& kv, const AttentionSpec& spec) {
  check_kv(kv);
  CHECK(kv.prefix_length >= 0 &&
            (kv.prefix_length == 0 || (kv.prefix_k != nullptr && kv.prefix_v != nullptr)),
        "a prefix of " + std::to_string(kv.prefix_length) + " without data");
  CHECK(spec.scale > 0 && spec.softcap >= 0 && spec.window >= 0,
        "scale " + std::to_string(spec.scale) + ", softcap " + std::to_string(spec.softcap) +
            ", window " + std::to_string(spec.window));
}

}  // namespace trireme
