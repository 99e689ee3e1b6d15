// SPDX-License-Identifier: Apache-2.0
// Loads, stores and rounding of fp32 vectors with any number of elements left. Included once per
// Highway target by another -inl.h (see vector_targets.h).
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using Vector = hn::Vec<FloatTag>;
using WordTag = hn::RebindToUnsigned<FloatTag>;
using HalfTag = hn::Rebind<uint16_t, FloatTag>;
constexpr int64_t kLanes = hn::MaxLanes(FloatTag());

// The first min(left, kLanes) elements, then zeros. Never touches memory beyond them.
HWY_INLINE Vector load(const float* from, int64_t left) {
  if (left >= kLanes) return hn::LoadU(FloatTag(), from);
  alignas(64) float lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<size_t>(left) * sizeof(float));
  return hn::Load(FloatTag(), lanes);
}

HWY_INLINE Vector load(const uint16_t* from, int64_t left) {
  alignas(64) uint16_t lanes[kLanes] = {};
  if (left < kLanes) {
    std::memcpy(lanes, from, static_cast<size_t>(left) * sizeof(uint16_t));
    from = lanes;
  }
  const auto words = hn::PromoteTo(WordTag(), hn::LoadU(HalfTag(), from));
  return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(words));
}

HWY_INLINE void store(float* to, Vector value, int64_t left) {
  if (left >= kLanes) return hn::StoreU(value, FloatTag(), to);
  alignas(64) float lanes[kLanes];
  hn::Store(value, FloatTag(), lanes);
  std::memcpy(to, lanes, static_cast<size_t>(left) * sizeof(float));
}

// Rounds to nearest even; a NaN stays one, quiet.
HWY_INLINE void store(uint16_t* to, Vector value, int64_t left) {
  const WordTag tag;
  const auto bits = hn::BitCast(tag, value);
  const auto high = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(high, hn::Set(tag, 1u));
  const auto rounded =
      hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(tag, 0x7FFFu)), odd));
  const auto is_nan = hn::RebindMask(tag, hn::IsNaN(value));
  const auto chosen = hn::IfThenElse(is_nan, hn::Or(high, hn::Set(tag, 0x40u)), rounded);
  const auto halves = hn::TruncateTo(HalfTag(), chosen);
  if (left >= kLanes) return hn::StoreU(halves, HalfTag(), to);
  alignas(64) uint16_t lanes[kLanes];
  hn::Store(halves, HalfTag(), lanes);
  std::memcpy(to, lanes, static_cast<size_t>(left) * sizeof(uint16_t));
}

}  // namespace trireme::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
