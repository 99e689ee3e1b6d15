// SPDX-License-Identifier: Apache-2.0
// Row kernels, once per Highway target (see vector_targets.h).
#include <cmath>

#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::cpu::HWY_NAMESPACE {

template <class Element>
void rms_norm_to(Element* y, const float* x, const float* weight, int64_t n, float eps) {
  const FloatTag tag;
  Vector squares = hn::Zero(tag);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector value = load(x + i, n - i);
    squares = hn::MulAdd(value, value, squares);
  }
  const float sum = hn::GetLane(hn::SumOfLanes(tag, squares));
  const Vector scale = hn::Set(tag, 1.0f / std::sqrt(sum / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector value = hn::Mul(load(x + i, n - i), scale);
    store(y + i, hn::Mul(value, load(weight + i, n - i)), n - i);
  }
}

template <class Element>
void silu_mul_to(Element* y, const float* gate, const float* up, int64_t n) {
  const FloatTag tag;
  const Vector one = hn::Set(tag, 1.0f);
  // Beyond e^88 fp32 overflows, and Highway's Exp is not defined; the quotient is 0 to fp32 anyway.
  const Vector most = hn::Set(tag, 88.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector value = load(gate + i, n - i);
    const Vector power = hn::Exp(tag, hn::Min(hn::Neg(value), most));
    const Vector silu = hn::Div(value, hn::Add(one, power));
    store(y + i, hn::Mul(silu, load(up + i, n - i)), n - i);
  }
}

template <class Element>
void convert_to(Element* y, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, load(x + i, n - i), n - i);
}

inline void rms_norm(void* y, DType type, const float* x, const float* weight, int64_t n,
                     float eps) {
  if (type == DType::kF32) return rms_norm_to(static_cast<float*>(y), x, weight, n, eps);
  rms_norm_to(static_cast<uint16_t*>(y), x, weight, n, eps);
}

inline void silu_mul(void* y, DType type, const float* gate, const float* up, int64_t n) {
  if (type == DType::kF32) return silu_mul_to(static_cast<float*>(y), gate, up, n);
  silu_mul_to(static_cast<uint16_t*>(y), gate, up, n);
}

inline void convert(void* y, DType type, const float* x, int64_t n) {
  if (type == DType::kF32) return convert_to(static_cast<float*>(y), x, n);
  convert_to(static_cast<uint16_t*>(y), x, n);
}

inline void add(float* x, const float* h, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += h[i];
}

// Plain loops, which the compiler vectorises for the target; it never fuses (see CMakeLists.txt), so
// an element is the same in the vector body and in the tail.
inline void rope(float* head, const RopeRow& angles) {
  const int64_t step = angles.adjacent ? 2 : 1;
  const int64_t distance = angles.adjacent ? 1 : angles.pairs;
  for (int64_t i = 0; i < angles.pairs; ++i) {
    const float a = head[i * step];
    const float b = head[i * step + distance];
    head[i * step] = a * angles.cos[i] - b * angles.sin[i];
    head[i * step + distance] = b * angles.cos[i] + a * angles.sin[i];
  }
}

inline const RowKernels& row_kernels() {
  static constexpr RowKernels kKernels = {rms_norm, silu_mul, convert, add, rope};
  return kKernels;
}

}  // namespace trireme::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
