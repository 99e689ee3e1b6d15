// SPDX-License-Identifier: Apache-2.0
// What every sum over peers must be, called by all ranks of a group at once. Run over threads with
// emulated GPUs by tests/worker/nccl/peers_test.cc, over processes by tests/gpu/peer_sums.cc.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/peer_sum.h"

namespace trireme {

struct PeerSumCase {
  DType dtype = DType::kF32;
  PeerSum::Way way = PeerSum::Way::kAtOnce;
  int64_t count = 0;
  int64_t offset = 0;  // of x in its buffer, in elements

  std::string name() const {
    return std::string(dtype_name(dtype)) +
           (way == PeerSum::Way::kAtOnce ? " at once, " : " in parts, ") + std::to_string(count) +
           " elements from " + std::to_string(offset);
  }
};

// Numbers of different sizes, so that another order of summation gives other bits.
inline float peer_value(int rank, int64_t index, uint64_t seed) {
  uint64_t x = seed * 1000003 + static_cast<uint64_t>(rank);
  x = (x << 32) + static_cast<uint64_t>(index);
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  const float fraction = static_cast<float>(x >> 40) / 16777216.0f - 0.5f;
  return fraction * static_cast<float>(1u << (x % 10));
}

inline uint32_t encode(DType dtype, float value) {
  uint32_t bits = 0;
  if (dtype == DType::kF32) std::memcpy(&bits, &value, sizeof(bits));
  if (dtype == DType::kBF16) bits = float_to_bf16(value);
  if (dtype == DType::kF16) bits = float_to_fp16(value);
  return bits;
}
inline float decode(DType dtype, uint32_t bits) {
  float value = 0;
  if (dtype == DType::kF32) std::memcpy(&value, &bits, sizeof(value));
  if (dtype == DType::kBF16) value = bf16_to_float(static_cast<uint16_t>(bits));
  if (dtype == DType::kF16) value = fp16_to_float(static_cast<uint16_t>(bits));
  return value;
}

// Elements as they lie in memory, which has some on both sides of x that are nobody's.
class PeerElements {
 public:
  PeerElements(const PeerSumCase& param, int rank, uint64_t seed)
      : param_(param), size_(static_cast<size_t>(element_size(param.dtype))) {
    bytes_.assign(static_cast<size_t>(param.offset + param.count + kBehind) * size_,
                  std::byte{0xA5});
    for (int64_t i = 0; i < param.count; ++i) {
      const uint32_t bits = encode(param.dtype, peer_value(rank, i, seed));
      std::memcpy(at(i), &bits, size_);
    }
  }
  std::vector<std::byte>& bytes() { return bytes_; }
  uint32_t element(int64_t i) {
    uint32_t bits = 0;
    std::memcpy(&bits, at(i), size_);
    return bits;
  }
  bool surroundings_intact() {
    for (int64_t i = -param_.offset; i < param_.count + kBehind; ++i) {
      if (i == 0) i = param_.count;
      for (size_t b = 0; b < size_; ++b) {
        if (at(i)[b] != std::byte{0xA5}) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kBehind = 9;
  std::byte* at(int64_t i) {
    return bytes_.data() + static_cast<size_t>(param_.offset + i) * size_;
  }

  const PeerSumCase param_;
  const size_t size_;
  std::vector<std::byte> bytes_;
};

// What is wrong with x behind the sum; empty: nothing. Each element has the bits of the fp32 sum in
// rank order, rounded once, and all are near the sum in double.
inline std::string compare_peer_sum(const PeerSumCase& param, PeerElements& x, int size,
                                    uint64_t seed) {
  double square = 0, whole = 0;
  for (int64_t i = 0; i < param.count; ++i) {
    float sum = 0;
    double exact = 0;
    for (int r = 0; r < size; ++r) {
      const float value = decode(param.dtype, encode(param.dtype, peer_value(r, i, seed)));
      sum = r == 0 ? value : sum + value;
      exact += value;
    }
    const uint32_t got = x.element(i);
    if (got != encode(param.dtype, sum)) {
      return param.name() + ": element " + std::to_string(i) + " is " +
             std::to_string(decode(param.dtype, got)) + ", the sum is " + std::to_string(sum);
    }
    square += std::pow(decode(param.dtype, got) - exact, 2);
    whole += exact * exact;
  }
  const double error = std::sqrt(square / std::max(whole, 1e-30));
  const double limit = param.dtype == DType::kF32 ? 1e-5 : 1e-2;
  if (error > limit) return param.name() + ": error " + std::to_string(error);
  if (!x.surroundings_intact()) return param.name() + ": wrote beside x";
  return "";
}

// What is wrong, if anything.
inline std::string check_peer_sum(PeerSum& peers, Backend& backend, int rank, int size,
                                  const PeerSumCase& param, uint64_t seed) {
  PeerElements x(param, rank, seed);
  const Buffer buffer = backend.allocate(x.bytes().size());
  backend.upload(buffer.data(), x.bytes().data(), buffer.bytes());
  auto* const data =
      static_cast<std::byte*>(buffer.data()) + param.offset * element_size(param.dtype);
  peers.sum({data, param.dtype, 1, param.count}, param.way);
  backend.synchronize();
  backend.download(x.bytes().data(), buffer.data(), buffer.bytes());
  return compare_peer_sum(param, x, size, seed);
}

// Every type both ways, sizes on both sides of words, vectors and ctas, and up to the largest.
inline std::vector<PeerSumCase> peer_sum_cases(bool largest) {
  std::vector<PeerSumCase> cases;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const auto way : {PeerSum::Way::kAtOnce, PeerSum::Way::kInParts}) {
      for (const int64_t count : {1, 2, 7, 33, 515, 4099}) {
        cases.push_back({dtype, way, count, count % 2});
      }
      cases.push_back({dtype, way, 4096, 0});
    }
    if (!largest) continue;
    cases.push_back({dtype, PeerSum::Way::kAtOnce, (256 << 10) / element_size(dtype), 0});
    cases.push_back({dtype, PeerSum::Way::kInParts, (2 << 20) / element_size(dtype) - 1, 1});
    cases.push_back({dtype, PeerSum::Way::kInParts, (2 << 20) / element_size(dtype), 0});
  }
  return cases;
}

// Of the sum with number `seed` in a row: both ways, sizes that go up and down.
inline PeerSumCase mixed_peer_sum(uint64_t seed) {
  const auto way = seed % 3 == 0 ? PeerSum::Way::kInParts : PeerSum::Way::kAtOnce;
  const DType dtype = seed % 5 == 1 ? DType::kBF16 : DType::kF32;
  return {dtype, way, static_cast<int64_t>(1 + seed * seed * 7919 % 1200), 0};
}

}  // namespace trireme
