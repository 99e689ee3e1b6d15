// SPDX-License-Identifier: Apache-2.0
// The element types that weights are stored in, by safetensors and by GGUF, and their conversion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/tensor.h"

namespace trireme {

// A row is a sequence of blocks; plain types are blocks of one value.
struct StoredType {
  const char* name;   // as the formats spell it: "BF16", "Q4_1"
  int32_t ggml_type;  // number in a GGUF file; -1: only in safetensors
  int32_t block_values;
  int32_t block_bytes;
  // Expands `blocks` blocks to fp32; null: a type that we know of but do not read.
  void (*decode)(const std::byte* data, int64_t blocks, float* out);
};

std::span<const StoredType> stored_types();
// Null if there is no such type.
const StoredType* find_stored_type(std::string_view name);
const StoredType* find_ggml_type(uint32_t number);

// Writes the values [col, col + out.cols) of a stored row to the one row of `out` (fp32, bf16,
// fp16), rounding to nearest even. Touches only the blocks that hold these columns. REQUIRES:
// type.decode, and a row of at least col + out.cols values.
void convert_row(const StoredType& type, const std::byte* row, int64_t col, Tensor out);

// The first column of the one row of `out` (fp32, bf16, fp16) that is infinite or not a number; -1
// where all are finite.
int64_t first_not_finite(Tensor out);

}  // namespace trireme
