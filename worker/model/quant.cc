// SPDX-License-Identifier: Apache-2.0
// Block layouts as the GGUF format defines them. A product is rounded to fp32 before the next
// operation, so the values are those of the format's reference, bit for bit.
#include "worker/model/quant.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace trireme {
namespace {

constexpr int64_t kMaxBlockValues = 256;

// Blocks lie at any address, so every field is copied out.
template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

float load_fp16(const std::byte* data) { return fp16_to_float(load<uint16_t>(data)); }

void decode_f32(const std::byte* data, int64_t blocks, float* out) {
  std::memcpy(out, data, blocks * sizeof(float));
}

void decode_f16(const std::byte* data, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = load_fp16(data + 2 * i);
}

void decode_bf16(const std::byte* data, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = bf16_to_float(load<uint16_t>(data + 2 * i));
}

// fp16 scale, 32 x int8.
void decode_q8_0(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 34, out += 32) {
    const float scale = load_fp16(data);
    for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(load<int8_t>(data + 2 + i));
  }
}

// fp16 scale, 32 x 4 bits: the low nibbles are values 0 to 15, the high ones 16 to 31; zero is 8.
void decode_q4_0(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 18, out += 32) {
    const float scale = load_fp16(data);
    for (int i = 0; i < 16; ++i) {
      const int pair = load<uint8_t>(data + 2 + i);
      out[i] = scale * static_cast<float>((pair & 15) - 8);
      out[i + 16] = scale * static_cast<float>((pair >> 4) - 8);
    }
  }
}

// fp16 scale, fp16 minimum, 32 x 4 bits in the order of Q4_0.
void decode_q4_1(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 20, out += 32) {
    const float scale = load_fp16(data);
    const float minimum = load_fp16(data + 2);
    for (int i = 0; i < 16; ++i) {
      const int pair = load<uint8_t>(data + 4 + i);
      out[i] = scale * static_cast<float>(pair & 15) + minimum;
      out[i + 16] = scale * static_cast<float>(pair >> 4) + minimum;
    }
  }
}

// 256 values of 6 bits: their low nibbles (128 bytes), their two high bits (64 bytes), an int8
// scale for each 16 values (16 bytes), an fp16 scale of the scales. Zero is 32.
void decode_q6_k(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 210, out += 256) {
    const std::byte* low = data;
    const std::byte* high = data + 128;
    const std::byte* scales = data + 192;
    const float scale = load_fp16(data + 208);
    for (int v = 0; v < 256; ++v) {
      // Each half of 128 values is four quarters of 32: the first two share their bytes of `low`
      // with the last two, and all four share their bytes of `high`.
      const int half = v / 128;
      const int quarter = v % 128 / 32;
      const int lane = v % 32;
      const int nibble =
          load<uint8_t>(low + 64 * half + 32 * (quarter & 1) + lane) >> 4 * (quarter / 2) & 15;
      const int top = load<uint8_t>(high + 32 * half + lane) >> 2 * quarter & 3;
      const float group = scale * static_cast<float>(load<int8_t>(scales + v / 16));
      out[v] = group * static_cast<float>((nibble | top << 4) - 32);
    }
  }
}

constexpr std::array kTypes = {
    StoredType{"F32", 0, 1, 4, decode_f32},
    StoredType{"F16", 1, 1, 2, decode_f16},
    StoredType{"BF16", 30, 1, 2, decode_bf16},
    StoredType{"Q8_0", 8, 32, 34, decode_q8_0},
    StoredType{"Q4_0", 2, 32, 18, decode_q4_0},
    StoredType{"Q4_1", 3, 32, 20, decode_q4_1},
    StoredType{"Q6_K", 14, 256, 210, decode_q6_k},
    // Known so that a file holding them opens and the refusal can name them.
    StoredType{"Q5_0", 6, 32, 22, nullptr},
    StoredType{"Q5_1", 7, 32, 24, nullptr},
    StoredType{"Q8_1", 9, 32, 40, nullptr},
    StoredType{"Q2_K", 10, 256, 84, nullptr},
    StoredType{"Q3_K", 11, 256, 110, nullptr},
    StoredType{"Q4_K", 12, 256, 144, nullptr},
    StoredType{"Q5_K", 13, 256, 176, nullptr},
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

}  // namespace trireme
