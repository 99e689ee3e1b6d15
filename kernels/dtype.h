// SPDX-License-Identifier: Apache-2.0
// Element types of tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

// kI8 and kI4 are types of weights only, kept in groups that share a scale
// (Backend::make_quantised).
enum class DType : uint8_t { kF32, kBF16, kF16, kI32, kI8, kI4 };

constexpr bool is_quantised(DType dtype) { return dtype == DType::kI8 || dtype == DType::kI4; }

// Of one element by itself: packed, two of int4 share a byte.
constexpr int64_t element_size(DType dtype) {
  if (is_quantised(dtype)) return 1;
  return dtype == DType::kF32 || dtype == DType::kI32 ? 4 : 2;
}

// "fp32", "bf16", "fp16", "int8", "int4": the names of --dtype; and "int32".
const char* dtype_name(DType dtype);
std::optional<DType> parse_dtype(std::string_view name);

// The type of matmul inputs and of the KV cache for weights of this type. fp16 weights are read
// with fp32 activations: their range would not hold a residual stream's outliers.
constexpr DType activation_dtype(DType weights) {
  return weights == DType::kBF16 || is_quantised(weights) ? DType::kBF16 : DType::kF32;
}

// Conversions of one element; bf16 and fp16 round to nearest even.
float bf16_to_float(uint16_t bits);
uint16_t float_to_bf16(float value);
float fp16_to_float(uint16_t bits);
uint16_t float_to_fp16(float value);

}  // namespace trireme
