// SPDX-License-Identifier: Apache-2.0
// Rotary tables against the formulas of the papers in double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "worker/model/decoder.h"

namespace trireme {
namespace {

constexpr int32_t kPositions = 300;

RopeSpec base_spec() {
  RopeSpec rope;
  rope.set_base(10000);
  rope.set_rotary_dim(64);
  return rope;
}

// The table's angles of each pair must turn with `frequency`, at `amplitude`.
template <typename Frequency>
void expect_table(const RopeSpec& rope, double amplitude, const Frequency& frequency) {
  const auto backend = make_backend({.device = "cpu", .threads = 1, .isa = "auto"});
  const RopeTable table = make_rope_table(rope, kPositions, *backend);
  ASSERT_EQ(table.rotary_dim, rope.rotary_dim());
  ASSERT_EQ(table.num_positions, kPositions);
  const int32_t pairs = rope.rotary_dim() / 2;
  for (int32_t position : {0, 1, 2, 63, kPositions - 1}) {
    for (int32_t i = 0; i < pairs; ++i) {
      const double angle = position * frequency(i);
      const double bound = amplitude * (1e-7 + 2e-7 * angle);  // the angle is rounded to fp32
      EXPECT_NEAR(table.cos[position * pairs + i], amplitude * std::cos(angle), bound)
          << position << ", pair " << i;
      EXPECT_NEAR(table.sin[position * pairs + i], amplitude * std::sin(angle), bound)
          << position << ", pair " << i;
    }
  }
}

double plain(const RopeSpec& rope, int32_t i) {
  return std::exp(-std::log(rope.base()) * 2 * i / rope.rotary_dim());
}

TEST(Rope, Plain) {
  const RopeSpec rope = base_spec();
  expect_table(rope, 1, [&](int32_t i) { return plain(rope, i); });
}

// Dividing the frequencies is dividing the positions.
TEST(Rope, Linear) {
  RopeSpec rope = base_spec();
  rope.set_scaling(ROPE_SCALING_LINEAR);
  rope.set_factor(16);
  expect_table(rope, 1, [&](int32_t i) { return plain(rope, i) / 16; });
}

// By wavelengths, as the Llama 3.1 report has it.
TEST(Rope, Llama3) {
  RopeSpec rope = base_spec();
  rope.set_scaling(ROPE_SCALING_LLAMA3);
  rope.set_factor(8);
  rope.set_low_freq_factor(1);
  rope.set_high_freq_factor(4);
  rope.set_original_context(256);
  int kept = 0, divided = 0, between = 0;
  const auto scaled = [&](int32_t i) {
    const double wavelength = 2 * std::numbers::pi / plain(rope, i);
    if (wavelength < 256.0 / 4) return ++kept, plain(rope, i);
    if (wavelength > 256.0 / 1) return ++divided, plain(rope, i) / 8;
    ++between;
    const double smooth = (256 / wavelength - 1) / (4 - 1);
    return (1 - smooth) * plain(rope, i) / 8 + smooth * plain(rope, i);
  };
  expect_table(rope, 1, scaled);
  EXPECT_TRUE(kept > 0 && divided > 0 && between > 0);
}

// The ramp runs from the pair that makes `fast` turns in the original context to that of `slow`.
void expect_yarn(double original, double fast, double slow, bool unrounded) {
  SCOPED_TRACE(original);
  RopeSpec rope = base_spec();
  rope.set_scaling(ROPE_SCALING_YARN);
  rope.set_factor(4);
  rope.set_original_context(static_cast<int32_t>(original));
  rope.set_beta_fast(fast);
  rope.set_beta_slow(slow);
  rope.set_unrounded(unrounded);
  rope.set_attention_factor(1.25);
  // 2 pi turns = original · base^(-2 i / dim), solved for i.
  const auto pair_of = [&](double turns) {
    return 32 * std::log(original / turns / (2 * std::numbers::pi)) / std::log(10000.0);
  };
  double first = pair_of(fast), last = pair_of(slow);
  if (!unrounded) first = std::floor(first), last = std::ceil(last);
  if (first < 0) first = 0;
  if (last > 63) last = 63;
  if (first == last) last = first + 0.001;
  expect_table(rope, 1.25, [&](int32_t i) {
    const double ramp = std::min(1.0, std::max(0.0, (i - first) / (last - first)));
    return ramp * plain(rope, i) / 4 + (1 - ramp) * plain(rope, i);
  });
}

TEST(Rope, Yarn) {
  expect_yarn(4096, 32, 1, false);
  expect_yarn(32768, 32, 1, true);
  expect_yarn(16, 2, 0.25, true);  // the ramp begins before the first pair
  expect_yarn(16, 32, 8, false);   // both ends there: one width of nothing
  expect_yarn(1 << 24, 4, 2, false);
}

}  // namespace
}  // namespace trireme
