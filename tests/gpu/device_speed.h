// SPDX-License-Identifier: Apache-2.0
// What a GPU reaches by itself, which benchmarks compare with: times on its own clock, copies of
// its memory, products of a model's matrices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.h"

namespace trireme {

class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream);
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  // Device time of what `queue` queues, in seconds.
  double time(const std::function<void()>& queue);

 private:
  const cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// Normally distributed bf16 for whatever is multiplied or copied: zeros cost a GPU less power, and
// so less time (an H200: 894 TFLOP/s beside 788). As fp32 and as packed integers with their scales
// they are numbers too.
class Noise {
 public:
  explicit Noise(Backend& backend);
  void fill(const Buffer& buffer) const;

 private:
  Backend& backend_;
  Buffer block_;
};

// Bytes read and written per second by a copy of 1 GiB on the device.
class DeviceCopy {
 public:
  DeviceCopy(Backend& backend, const Noise& noise);
  double measure(Stopwatch& watch) const;
  void queue() const;

 private:
  Backend& backend_;
  Buffer from_, to_;
};

struct MatrixShapes {
  int layers = 28;  // of ChatGLM3-6B, as what follows
  int64_t hidden = 4096, qkv = 4608, attended = 4096, ffn = 13696, vocab = 65024;
  DType dtype = DType::kBF16;  // of the layers' matrices; the head's is bf16
};

// All matrices that a decode step reads, of random numbers.
class Matrices {
 public:
  Matrices(Backend& backend, const Noise& noise, const MatrixShapes& shapes, int64_t most_rows);
  // with_head: a prefill needs it for one row only.
  void multiply(int64_t rows, bool with_head);
  double bytes() const { return bytes_; }
  double operations(int64_t rows) const;  // without the head's

 private:
  void add(const Noise& noise, DType dtype, int64_t n, int64_t k);

  Backend& backend_;
  const MatrixShapes shapes_;
  std::vector<Weight> weights_;
  Buffer x_, y_;
  double bytes_ = 0;
};

}  // namespace trireme
