// SPDX-License-Identifier: Apache-2.0
// Conversions of one element: all 65,536 patterns, and fp32 values at and beside every rounding
// edge.
#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

namespace trireme {
namespace {

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

bool is_nan(float value) { return std::isnan(value); }

TEST(DTypeTest, Fp16ToFloatAgreesWithTheCompiler) {
  for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const auto want = static_cast<float>(std::bit_cast<_Float16>(half));
    if (is_nan(want)) {
      ASSERT_TRUE(is_nan(fp16_to_float(half))) << bits;
    } else {
      ASSERT_EQ(bits_of(fp16_to_float(half)), bits_of(want)) << bits;
      ASSERT_EQ(float_to_fp16(want), half) << bits;
    }
  }
  EXPECT_TRUE(is_nan(fp16_to_float(float_to_fp16(NAN))));
}

void expect_fp16_rounding(uint32_t bits) {
  const auto value = std::bit_cast<float>(bits);
  if (is_nan(value)) return;
  const auto want = std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  ASSERT_EQ(float_to_fp16(value), want) << std::hex << bits;
}

TEST(DTypeTest, FloatToFp16RoundsToNearestEven) {
  for (uint32_t half = 0; half < 0xFFFF; ++half) {
    const double low = fp16_to_float(static_cast<uint16_t>(half));
    const double high = fp16_to_float(static_cast<uint16_t>(half + 1));
    const uint32_t middle = bits_of(static_cast<float>((low + high) / 2));
    for (uint32_t bits = middle - 2; bits != middle + 3; ++bits) {
      ASSERT_NO_FATAL_FAILURE(expect_fp16_rounding(bits));
    }
  }
  for (uint64_t bits = 0; bits <= 0xFFFFFFFF; bits += 4099) {
    ASSERT_NO_FATAL_FAILURE(expect_fp16_rounding(static_cast<uint32_t>(bits)));
  }
}

TEST(DTypeTest, Bf16RoundTrips) {
  for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = bf16_to_float(half);
    ASSERT_EQ(bits_of(value), bits << 16);
    if (is_nan(value)) {
      ASSERT_TRUE(is_nan(bf16_to_float(float_to_bf16(value)))) << bits;
    } else {
      ASSERT_EQ(float_to_bf16(value), half) << bits;
    }
  }
}

TEST(DTypeTest, FloatToBf16RoundsToNearestEven) {
  for (uint32_t low = 0; low < 0x7F80; ++low) {  // positive and finite; the sign is apart
    const uint32_t middle = low << 16 | 0x8000;
    const uint32_t even = low + (low & 1);
    for (const uint32_t sign : {0u, 0x8000u}) {
      const auto round = [&](uint32_t bits) {
        return float_to_bf16(std::bit_cast<float>(bits | sign << 16)) ^ sign;
      };
      ASSERT_EQ(round(middle - 1), low);
      ASSERT_EQ(round(middle), even);
      ASSERT_EQ(round(middle + 1), low + 1);
    }
  }
  // A NaN whose upper half alone would read as infinity.
  EXPECT_TRUE(is_nan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7F800001u)))));
}

TEST(DTypeTest, NamesRoundTrip) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    EXPECT_EQ(parse_dtype(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(parse_dtype("int32"), std::nullopt);
  EXPECT_EQ(parse_dtype("float"), std::nullopt);
}

}  // namespace
}  // namespace trireme
