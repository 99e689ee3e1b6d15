// SPDX-License-Identifier: Apache-2.0
#include "worker/model/quant.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "worker/model/ggml_blocks.h"

namespace trireme {
namespace {

constexpr int64_t kMaxBlockValues = 256;

// Values lie at any address, so they are copied out.
uint16_t load_bits(const std::byte* data) {
  uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return bits;
}

void decode_f32(const std::byte* data, int64_t blocks, float* out) {
  std::memcpy(out, data, blocks * sizeof(float));
}

void decode_f16(const std::byte* data, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = fp16_to_float(load_bits(data + 2 * i));
}

void decode_bf16(const std::byte* data, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = bf16_to_float(load_bits(data + 2 * i));
}

constexpr std::array kTypes = {
    StoredType{"F32", 0, 1, 4, decode_f32},
    StoredType{"F16", 1, 1, 2, decode_f16},
    StoredType{"BF16", 30, 1, 2, decode_bf16},
    StoredType{"Q8_0", 8, 32, 34, decode_q8_0},
    StoredType{"Q4_0", 2, 32, 18, decode_q4_0},
    StoredType{"Q4_1", 3, 32, 20, decode_q4_1},
    StoredType{"Q5_0", 6, 32, 22, decode_q5_0},
    StoredType{"Q5_1", 7, 32, 24, decode_q5_1},
    StoredType{"Q2_K", 10, 256, 84, decode_q2_k},
    StoredType{"Q3_K", 11, 256, 110, decode_q3_k},
    StoredType{"Q4_K", 12, 256, 144, decode_q4_k},
    StoredType{"Q5_K", 13, 256, 176, decode_q5_k},
    StoredType{"Q6_K", 14, 256, 210, decode_q6_k},
    // Known so that a file holding them opens and the refusal can name them.
    StoredType{"Q8_1", 9, 32, 40, nullptr},
    StoredType{"Q8_K", 15, 256, 292, nullptr},
    StoredType{"IQ2_XXS", 16, 256, 66, nullptr},
    StoredType{"IQ2_XS", 17, 256, 74, nullptr},
    StoredType{"IQ3_XXS", 18, 256, 98, nullptr},
    StoredType{"IQ1_S", 19, 256, 50, nullptr},
    StoredType{"IQ4_NL", 20, 32, 18, nullptr},
    StoredType{"IQ3_S", 21, 256, 110, nullptr},
    StoredType{"IQ2_S", 22, 256, 82, nullptr},
    StoredType{"IQ4_XS", 23, 256, 136, nullptr},
    StoredType{"IQ1_M", 29, 256, 56, nullptr},
    StoredType{"TQ1_0", 34, 256, 54, nullptr},
    StoredType{"TQ2_0", 35, 256, 66, nullptr},
    StoredType{"MXFP4", 39, 32, 17, nullptr},
    StoredType{"I8", 24, 1, 1, nullptr},
    StoredType{"I16", 25, 1, 2, nullptr},
    StoredType{"I32", 26, 1, 4, nullptr},
    StoredType{"I64", 27, 1, 8, nullptr},
    StoredType{"F64", 28, 1, 8, nullptr},
    StoredType{"U8", -1, 1, 1, nullptr},
    StoredType{"U16", -1, 1, 2, nullptr},
    StoredType{"U32", -1, 1, 4, nullptr},
    StoredType{"U64", -1, 1, 8, nullptr},
    StoredType{"BOOL", -1, 1, 1, nullptr},
    StoredType{"F8_E4M3", -1, 1, 1, nullptr},
    StoredType{"F8_E5M2", -1, 1, 1, nullptr},
};

// Rounds `count` floats to the type of `out`.
void store(const float* values, int64_t count, DType dtype, void* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, values, count * sizeof(float));
    return;
  }
  auto* bits = static_cast<uint16_t*>(out);
  if (dtype == DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bf16(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_fp16(values[i]);
  }
}

bool same_type(const StoredType& type, DType dtype) {
  return (type.decode == decode_f32 && dtype == DType::kF32) ||
         (type.decode == decode_f16 && dtype == DType::kF16) ||
         (type.decode == decode_bf16 && dtype == DType::kBF16);
}

// A value is not finite where all bits of its exponent are set, that is where the value without
// its sign is `limit` or more: `step` further it reaches the sign. The first loop is what runs on
// sound weights: it must vectorise.
template <typename Bits>
int64_t first_from(const Bits* values, int64_t count, Bits limit) {
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  const auto step = static_cast<Bits>(kSign - limit);
  Bits reached = 0;
  for (int64_t i = 0; i < count; ++i) reached |= static_cast<Bits>((values[i] & ~kSign) + step);
  if ((reached & kSign) == 0) return -1;
  const auto* first = std::find_if(
      values, values + count, [&](Bits bits) { return static_cast<Bits>(bits & ~kSign) >= limit; });
  return first - values;
}

}  // namespace

std::span<const StoredType> stored_types() { return kTypes; }

const StoredType* find_stored_type(std::string_view name) {
  const auto* type =
      std::find_if(kTypes.begin(), kTypes.end(), [&](auto& t) { return t.name == name; });
  return type == kTypes.end() ? nullptr : type;
}

const StoredType* find_ggml_type(uint32_t number) {
  const auto* type = std::find_if(kTypes.begin(), kTypes.end(), [&](auto& t) {
    return t.ggml_type >= 0 && static_cast<uint32_t>(t.ggml_type) == number;
  });
  return type == kTypes.end() ? nullptr : type;
}

void convert_row(const StoredType& type, const std::byte* row, int64_t col, Tensor out) {
  if (same_type(type, out.dtype)) {
    std::memcpy(out.data, row + col * type.block_bytes, out.cols * type.block_bytes);
    return;
  }
  // Through a scratch that stays in the first-level cache.
  constexpr int64_t kScratch = 4 * kMaxBlockValues;
  float scratch[kScratch];
  int64_t done = 0;
  while (done < out.cols) {
    const int64_t block = (col + done) / type.block_values;
    const int64_t skip = (col + done) % type.block_values;
    const int64_t wanted = skip + out.cols - done;
    const int64_t blocks = std::min((wanted + type.block_values - 1) / type.block_values,
                                    kScratch / type.block_values);
    const int64_t count = std::min(wanted, blocks * type.block_values) - skip;
    type.decode(row + block * type.block_bytes, blocks, scratch);
    store(scratch + skip, count, out.dtype, out.at(0, done));
    done += count;
  }
}

int64_t first_not_finite(Tensor out) {
  if (out.dtype == DType::kF32) {
    return first_from(static_cast<const uint32_t*>(out.data), out.cols, 0x7F800000u);
  }
  const uint16_t limit = out.dtype == DType::kBF16 ? 0x7F80 : 0x7C00;
  return first_from(static_cast<const uint16_t*>(out.data), out.cols, limit);
}

}  // namespace trireme
