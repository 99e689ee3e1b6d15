// SPDX-License-Identifier: Apache-2.0
// Layouts: the block structs of ggml (block_q4_0 … block_q6_K in ggml-common.h), whose fields lie
// without gaps in the order that each comment gives. A product is rounded to fp32 before the next
// operation; that and the order of the factors make the values the reference's. Inner loops run
// over neighbouring bytes with one shift, so that compilers vectorise them.
#include "worker/model/ggml_blocks.h"

#include <cstring>

#include "kernels/dtype.h"

namespace trireme {
namespace {

int byte_at(const std::byte* data) { return std::to_integer<int>(*data); }
int signed_byte_at(const std::byte* data) { return static_cast<int8_t>(byte_at(data)); }

float fp16_at(const std::byte* data) {
  uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return fp16_to_float(bits);
}

// Blocks of 32 values keep value i < 16 in the low nibble of byte i, value i + 16 in the high one.
// The fifth bits of Q5_0 and Q5_1 are a little-endian word, value i at bit i.
constexpr int kHalf = 16;

int fifth_bit(const std::byte* word, int value) {
  return byte_at(word + value / 8) >> value % 8 << 4 & 16;
}

// Value `lane` of a group of 2-bit values, 32 bytes for four groups.
int pair_of_bits(const std::byte* data, int lane, int shift) {
  return byte_at(data + lane) >> shift & 3;
}

// The 6-bit scale and minimum of 32 values in the 12 bytes that Q4_K and Q5_K share: of the first
// four groups they are the low bits of bytes 0-3 and 4-7; of the others the nibbles of bytes 8-11,
// with what bytes 0-7 have left as upper two bits.
struct ScaleAndMinimum {
  float scale;
  float minimum;
};

ScaleAndMinimum scale_and_minimum(const std::byte* data, int group) {
  if (group < 4) {
    return {static_cast<float>(byte_at(data + group) & 63),
            static_cast<float>(byte_at(data + group + 4) & 63)};
  }
  const int nibbles = byte_at(data + group + 4);
  const int scale_top = byte_at(data + group - 4) >> 6 << 4;
  const int minimum_top = byte_at(data + group) >> 6 << 4;
  return {static_cast<float>((nibbles & 15) | scale_top),
          static_cast<float>((nibbles >> 4) | minimum_top)};
}

}  // namespace

// fp16 scale, 32 × int8.
void decode_q8_0(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 34, out += 32) {
    const float scale = fp16_at(data);
    for (int i = 0; i < 32; ++i) {
      out[i] = scale * static_cast<float>(signed_byte_at(data + 2 + i));
    }
  }
}

// fp16 scale, 32 × 4 bits; zero is 8.
void decode_q4_0(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 18, out += 32) {
    const float scale = fp16_at(data);
    for (int i = 0; i < kHalf; ++i) {
      const int pair = byte_at(data + 2 + i);
      out[i] = scale * static_cast<float>((pair & 15) - 8);
      out[i + kHalf] = scale * static_cast<float>((pair >> 4) - 8);
    }
  }
}

// fp16 scale, fp16 minimum, 32 × 4 bits.
void decode_q4_1(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 20, out += 32) {
    const float scale = fp16_at(data);
    const float minimum = fp16_at(data + 2);
    for (int i = 0; i < kHalf; ++i) {
      const int pair = byte_at(data + 4 + i);
      out[i] = scale * static_cast<float>(pair & 15) + minimum;
      out[i + kHalf] = scale * static_cast<float>(pair >> 4) + minimum;
    }
  }
}

// fp16 scale, 32 fifth bits, 32 × 4 bits; zero is 16.
void decode_q5_0(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 22, out += 32) {
    const float scale = fp16_at(data);
    for (int i = 0; i < kHalf; ++i) {
      const int pair = byte_at(data + 6 + i);
      const int low = (pair & 15) | fifth_bit(data + 2, i);
      const int high = (pair >> 4) | fifth_bit(data + 2, i + kHalf);
      out[i] = scale * static_cast<float>(low - 16);
      out[i + kHalf] = scale * static_cast<float>(high - 16);
    }
  }
}

// fp16 scale, fp16 minimum, 32 fifth bits, 32 × 4 bits.
void decode_q5_1(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 24, out += 32) {
    const float scale = fp16_at(data);
    const float minimum = fp16_at(data + 2);
    for (int i = 0; i < kHalf; ++i) {
      const int pair = byte_at(data + 8 + i);
      const int low = (pair & 15) | fifth_bit(data + 4, i);
      const int high = (pair >> 4) | fifth_bit(data + 4, i + kHalf);
      out[i] = scale * static_cast<float>(low) + minimum;
      out[i + kHalf] = scale * static_cast<float>(high) + minimum;
    }
  }
}

// 16 × (4-bit scale below, 4-bit minimum above), one for each 16 values; 256 × 2 bits; fp16 scale
// of the scales; fp16 scale of the minima.
void decode_q2_k(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 84, out += 256) {
    const float scale = fp16_at(data + 80);
    const float minimum = fp16_at(data + 82);
    for (int group = 0; group < 16; ++group) {
      // Two groups fill 32 lanes; four such pairs share 32 bytes.
      const std::byte* bits = data + 16 + 32 * (group / 8) + 16 * (group % 2);
      const int shift = 2 * (group % 8 / 2);
      const int both = byte_at(data + group);
      const float by = scale * static_cast<float>(both & 15);
      const float less = minimum * static_cast<float>(both >> 4);
      for (int i = 0; i < 16; ++i) {
        out[16 * group + i] = by * static_cast<float>(pair_of_bits(bits, i, shift)) - less;
      }
    }
  }
}

// 256 third bits (32 bytes: value 32 b + i at bit b of byte i; where it is clear, 4 is taken off);
// 256 × 2 bits as in Q2_K; 16 scales of 6 bits less 32, one for each 16 values; fp16 scale of the
// scales. Scale s has its low nibble in nibble s / 8 of byte s % 8, its upper two bits in byte
// 8 + s % 4 at 2 (s / 4).
void decode_q3_k(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 110, out += 256) {
    const std::byte* scales = data + 96;
    const float scale = fp16_at(data + 108);
    for (int group = 0; group < 16; ++group) {
      const int lane = 16 * (group % 2);
      const std::byte* bits = data + 32 + 32 * (group / 8) + lane;
      const int shift = 2 * (group % 8 / 2);
      const int third = group / 2;
      const int nibble = byte_at(scales + group % 8) >> 4 * (group / 8) & 15;
      const int top = pair_of_bits(scales + 8, group % 4, 2 * (group / 4));
      const float by = scale * static_cast<float>((nibble | top << 4) - 32);
      for (int i = 0; i < 16; ++i) {
        const int less = 4 - (byte_at(data + lane + i) >> third << 2 & 4);
        out[16 * group + i] = by * static_cast<float>(pair_of_bits(bits, i, shift) - less);
      }
    }
  }
}

// fp16 scale of the scales, fp16 scale of the minima, 8 × (scale, minimum) of 6 bits, one for each
// 32 values; 256 × 4 bits: two groups of 32 share 32 bytes.
void decode_q4_k(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 144, out += 256) {
    const float scale = fp16_at(data);
    const float minimum = fp16_at(data + 2);
    for (int group = 0; group < 8; ++group) {
      const auto [by, less] = scale_and_minimum(data + 4, group);
      const float group_scale = scale * by;
      const float group_minimum = minimum * less;
      const std::byte* bits = data + 16 + 32 * (group / 2);
      const int shift = 4 * (group % 2);
      for (int i = 0; i < 32; ++i) {
        const int value = byte_at(bits + i) >> shift & 15;
        out[32 * group + i] = group_scale * static_cast<float>(value) - group_minimum;
      }
    }
  }
}

// As Q4_K with 256 fifth bits (32 bytes, value 32 b + i at bit b of byte i) before the nibbles.
void decode_q5_k(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 176, out += 256) {
    const float scale = fp16_at(data);
    const float minimum = fp16_at(data + 2);
    for (int group = 0; group < 8; ++group) {
      const auto [by, less] = scale_and_minimum(data + 4, group);
      const float group_scale = scale * by;
      const float group_minimum = minimum * less;
      const std::byte* fifth = data + 16;
      const std::byte* bits = data + 48 + 32 * (group / 2);
      const int shift = 4 * (group % 2);
      for (int i = 0; i < 32; ++i) {
        const int top = byte_at(fifth + i) >> group << 4 & 16;
        const int value = (byte_at(bits + i) >> shift & 15) | top;
        out[32 * group + i] = group_scale * static_cast<float>(value) - group_minimum;
      }
    }
  }
}

// 256 low nibbles (128 bytes); 256 × their two high bits (64 bytes); 16 × int8 scale, one for each
// 16 values; fp16 scale of the scales. Zero is 32.
void decode_q6_k(const std::byte* data, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, data += 210, out += 256) {
    const float scale = fp16_at(data + 208);
    for (int group = 0; group < 16; ++group) {
      // Each half of 128 values is four quarters of 32: the first two share their bytes of nibbles
      // with the last two, and all four share their bytes of high bits.
      const int half = group / 8;
      const int quarter = group % 8 / 2;
      const int lane = 16 * (group % 2);
      const std::byte* low = data + 64 * half + 32 * (quarter % 2) + lane;
      const std::byte* high = data + 128 + 32 * half + lane;
      const int shift = 4 * (quarter / 2);
      const float by = scale * static_cast<float>(signed_byte_at(data + 192 + group));
      for (int i = 0; i < 16; ++i) {
        const int value = (byte_at(low + i) >> shift & 15) | pair_of_bits(high, i, 2 * quarter)
                                                                 << 4;
        out[16 * group + i] = by * static_cast<float>(value - 32);
      }
    }
  }
}

}  // namespace trireme
