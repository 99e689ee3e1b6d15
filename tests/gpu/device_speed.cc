// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/device_speed.h"

#include <algorithm>
#include <random>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_stream.h"

namespace trireme {

using cuda::cuda_check;

namespace {
constexpr size_t kCopyBytes = size_t{1} << 30;
constexpr size_t kNoiseBytes = size_t{64} << 20;

void copy_on_device(Backend& backend, void* to, const void* from, size_t bytes) {
  cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda::stream_of(backend)),
             "copy");
}
}  // namespace

Stopwatch::Stopwatch(cudaStream_t stream) : stream_(stream) {
  cuda_check(cudaEventCreate(&begin_), "make a CUDA event");
  cuda_check(cudaEventCreate(&end_), "make a CUDA event");
}

Stopwatch::~Stopwatch() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
}

double Stopwatch::time(const std::function<void()>& queue) {
  cuda_check(cudaEventRecord(begin_, stream_), "record a CUDA event");
  queue();
  cuda_check(cudaEventRecord(end_, stream_), "record a CUDA event");
  cuda_check(cudaEventSynchronize(end_), "wait for the GPU");
  float ms = 0;
  cuda_check(cudaEventElapsedTime(&ms, begin_, end_), "read a CUDA event");
  return ms * 1e-3;
}

Noise::Noise(Backend& backend) : backend_(backend), block_(backend.allocate(kNoiseBytes)) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(kNoiseBytes / sizeof(uint16_t));
  for (uint16_t& value : values) value = float_to_bf16(normal(random));
  backend.upload(block_.data(), values.data(), kNoiseBytes);
  backend.synchronize();
}

void Noise::fill(const Buffer& buffer) const {
  for (size_t at = 0; at < buffer.bytes(); at += kNoiseBytes) {
    copy_on_device(backend_, static_cast<std::byte*>(buffer.data()) + at, block_.data(),
                   std::min(kNoiseBytes, buffer.bytes() - at));
  }
}

DeviceCopy::DeviceCopy(Backend& backend, const Noise& noise)
    : backend_(backend), from_(backend.allocate(kCopyBytes)), to_(backend.allocate(kCopyBytes)) {
  noise.fill(from_);
}

void DeviceCopy::queue() const { copy_on_device(backend_, to_.data(), from_.data(), kCopyBytes); }

double DeviceCopy::measure(Stopwatch& watch) const {
  return 2.0 * kCopyBytes / watch.time([this] { queue(); });
}

Matrices::Matrices(Backend& backend, const Noise& noise, const MatrixShapes& shapes,
                   int64_t most_rows)
    : backend_(backend), shapes_(shapes) {
  for (int layer = 0; layer < shapes.layers; ++layer) {
    add(noise, shapes.dtype, shapes.qkv, shapes.hidden);
    add(noise, shapes.dtype, shapes.hidden, shapes.attended);
    add(noise, shapes.dtype, 2 * shapes.ffn, shapes.hidden);
    add(noise, shapes.dtype, shapes.hidden, shapes.ffn);
  }
  add(noise, DType::kBF16, shapes.vocab, shapes.hidden);
  int64_t widest_x = 0;
  int64_t widest_y = 0;
  for (const Weight& w : weights_) {
    widest_x = std::max(widest_x, w.k);
    widest_y = std::max(widest_y, w.n);
  }
  x_ = backend.allocate(static_cast<size_t>(most_rows * widest_x * 2));
  y_ = backend.allocate(static_cast<size_t>(most_rows * widest_y * 4));
  noise.fill(x_);
}

void Matrices::add(const Noise& noise, DType dtype, int64_t n, int64_t k) {
  weights_.push_back(is_quantised(dtype) ? backend_.make_quantised(dtype, n, k, 0, k)
                                         : backend_.make_weight(dtype, n, k));
  noise.fill(weights_.back().storage);
  bytes_ += static_cast<double>(weights_.back().storage.bytes());
}

void Matrices::multiply(int64_t rows, bool with_head) {
  for (const Weight& w : weights_) {
    const bool head = &w == &weights_.back();
    const int64_t t = !head || with_head ? rows : 1;
    backend_.matmul(Tensor(y_.data(), DType::kF32, t, w.n), Tensor(x_.data(), DType::kBF16, t, w.k),
                    w, nullptr);
  }
}

double Matrices::operations(int64_t rows) const {
  double total = 0;
  for (const Weight& w : weights_) {
    if (&w != &weights_.back()) total += 2.0 * static_cast<double>(w.n * w.k * rows);
  }
  return total;
}

}  // namespace trireme
