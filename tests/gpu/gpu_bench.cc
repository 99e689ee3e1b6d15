// SPDX-License-Identifier: Apache-2.0
// What a GPU's operations reach on the shapes of ChatGLM3-6B, over what its memory's copies reach
// in the same run; medians of interleaved rounds, as JSON lines with the bars of the issue.
//
//   gpu_bench [--rounds N] [--layers N]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"

namespace {

using namespace trireme;
using cuda::cuda_check;

constexpr int64_t kHidden = 4096, kFfn = 13696, kQkv = 4608, kVocab = 65024;
constexpr int32_t kHeads = 32, kKvHeads = 2, kHeadDim = 128, kBlock = 16;

class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    cuda_check(cudaEventCreate(&begin_), "make a CUDA event");
    cuda_check(cudaEventCreate(&end_), "make a CUDA event");
  }
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  // Device time of what `queue` queues, in seconds.
  double time(const std::function<void()>& queue) {
    cuda_check(cudaEventRecord(begin_, stream_), "record a CUDA event");
    queue();
    cuda_check(cudaEventRecord(end_, stream_), "record a CUDA event");
    cuda_check(cudaEventSynchronize(end_), "wait for the GPU");
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, begin_, end_), "read a CUDA event");
    return ms * 1e-3;
  }

 private:
  const cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// All matrices that a decode step reads.
struct Matrices {
  Matrices(Backend& backend, int layers) : backend_(backend) {
    for (int layer = 0; layer < layers; ++layer) {
      add(kQkv, kHidden);
      add(kHidden, kHidden);
      add(2 * kFfn, kHidden);
      add(kHidden, kFfn);
    }
    add(kVocab, kHidden);
  }
  void reserve(int64_t rows) {
    x_ = backend_.allocate(static_cast<size_t>(rows * kFfn * 2));
    y_ = backend_.allocate(static_cast<size_t>(rows * kVocab * 4));
  }
  // with_head: a prefill needs it for one row only.
  void multiply(int64_t rows, bool with_head) {
    for (const Weight& w : weights_) {
      const int64_t t = w.n != kVocab || with_head ? rows : 1;
      backend_.matmul(Tensor(y_.data(), DType::kF32, t, w.n),
                      Tensor(x_.data(), DType::kBF16, t, w.k), w, nullptr);
    }
  }
  double bytes() const { return bytes_; }
  double operations(int64_t rows) const {
    double total = 0;
    for (const Weight& w : weights_) {
      total += 2.0 * static_cast<double>(w.n * w.k) * (w.n == kVocab ? 1.0 : double(rows));
    }
    return total;
  }

 private:
  void add(int64_t n, int64_t k) {
    weights_.push_back(backend_.make_weight(DType::kBF16, n, k));
    bytes_ += static_cast<double>(n * k * 2);
  }

  Backend& backend_;
  std::vector<Weight> weights_;
  Buffer x_, y_;
  double bytes_ = 0;
};

// A decode step's attention in one layer: `sequences`, each with a context of `context`.
class Attention {
 public:
  Attention(Backend& backend, int32_t sequences, int32_t context)
      : backend_(backend), sequences_(sequences) {
    const int32_t blocks = (context + kBlock - 1) / kBlock;
    kv_ = {nullptr,  nullptr, nullptr, nullptr, 0, DType::kBF16, sequences * blocks,
           kKvHeads, kBlock,  kHeadDim};
    const int64_t half = int64_t{kv_.num_blocks} * kKvHeads * kBlock * kHeadDim * 2;
    cache_ = backend.allocate(static_cast<size_t>(2 * half));
    kv_.k = cache_.data();
    kv_.v = static_cast<std::byte*>(cache_.data()) + half;
    std::vector<int32_t> begin, contexts, tables;
    for (int32_t s = 0; s <= sequences; ++s) begin.push_back(s);
    contexts.assign(static_cast<size_t>(sequences), context);
    for (int32_t i = 0; i < kv_.num_blocks; ++i) tables.push_back((i * 7919) % kv_.num_blocks);
    view_.num_tokens = view_.num_sequences = sequences;
    view_.max_blocks = blocks;
    view_.max_queries = 1;
    view_.max_context = context;
    view_.query_begin = upload(begin);
    view_.context = upload(contexts);
    view_.block_tables = upload(tables);
    const int64_t values = int64_t{sequences} * kHeads * kHeadDim;
    q_ = backend.allocate(static_cast<size_t>(values * 4));
    y_ = backend.allocate(static_cast<size_t>(values * 2));
  }
  void run() {
    constexpr int64_t kCols = int64_t{kHeads} * kHeadDim;
    backend_.attention(Tensor(y_.data(), DType::kBF16, sequences_, kCols),
                       Tensor(q_.data(), DType::kF32, sequences_, kCols), kv_, view_,
                       {0, 0, kHeads / kKvHeads}, {1 / std::sqrt(128.0f), 0, 0});
  }
  double bytes() const { return static_cast<double>(cache_.bytes()); }

 private:
  const int32_t* upload(const std::vector<int32_t>& values) {
    arrays_.push_back(backend_.allocate(values.size() * sizeof(int32_t)));
    backend_.upload(arrays_.back().data(), values.data(), values.size() * sizeof(int32_t));
    backend_.synchronize();
    return static_cast<const int32_t*>(arrays_.back().data());
  }

  Backend& backend_;
  const int32_t sequences_;
  KvLayer kv_;
  BatchView view_;
  Buffer cache_, q_, y_;
  std::vector<Buffer> arrays_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// target 0: no bar of the issue, said for the reader.
void print(const std::string& what, const std::vector<double>& values, double target) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double value = median(values);
  std::printf("{\"bar\": \"%s\", \"value\": %.4g, \"min\": %.4g, \"max\": %.4g", what.c_str(),
              value, *least, *most);
  if (target > 0) {
    std::printf(", \"target\": %.4g, \"ok\": %s", target, value >= target ? "true" : "false");
  }
  std::printf("}\n");
}

int run_bench(int rounds, int layers) {
  const auto backend = make_backend({.device = "cuda"});
  std::printf("{\"machine\": \"%s\", \"layers\": %d}\n", backend->name().c_str(), layers);
  Stopwatch watch(cuda::stream_of(*backend));
  constexpr size_t kCopyBytes = size_t{1} << 30;
  const Buffer from = backend->allocate(kCopyBytes);
  const Buffer to = backend->allocate(kCopyBytes);
  Matrices matrices(*backend, layers);
  constexpr int64_t kPrefill = 2048;
  matrices.reserve(kPrefill);
  // Of several layers, so that a launch is no part of what is measured, nor the cache.
  constexpr int kLayers = 16;
  std::deque<Attention> many, one;
  for (int layer = 0; layer < kLayers; ++layer) {
    many.emplace_back(*backend, 64, 1024);
    one.emplace_back(*backend, 1, 8192);
  }
  std::map<std::string, std::vector<double>> found;
  for (int round = -1; round < rounds; ++round) {  // the first one chooses algorithms
    const double copy = watch.time([&] {
      cuda_check(cudaMemcpyAsync(to.data(), from.data(), kCopyBytes, cudaMemcpyDeviceToDevice,
                                 cuda::stream_of(*backend)),
                 "copy");
    });
    const double copied = 2.0 * kCopyBytes / copy;  // bytes/s, read and written
    const auto of_copy = [&](double bytes, const std::function<void()>& queue) {
      return bytes / watch.time(queue) / copied;
    };
    const double m1 = of_copy(matrices.bytes(), [&] { matrices.multiply(1, true); });
    const double m2 = of_copy(matrices.bytes(), [&] { matrices.multiply(2, true); });
    const double m4 = of_copy(matrices.bytes(), [&] { matrices.multiply(4, true); });
    const double m8 = of_copy(matrices.bytes(), [&] { matrices.multiply(8, true); });
    const double m64 = of_copy(matrices.bytes(), [&] { matrices.multiply(64, true); });
    const double rate =
        matrices.operations(kPrefill) / watch.time([&] { matrices.multiply(kPrefill, false); });
    const auto run_all = [](std::deque<Attention>& all) {
      for (Attention& layer : all) layer.run();
    };
    const double a64 = of_copy(kLayers * many.front().bytes(), [&] { run_all(many); });
    const double a1 = of_copy(kLayers * one.front().bytes(), [&] { run_all(one); });
    if (round < 0) continue;
    found["copy, GB/s"].push_back(copied / 1e9);
    found["matrices of a step over copy, batch 1"].push_back(m1);
    found["matrices of a step over copy, batch 2"].push_back(m2);
    found["matrices of a step over copy, batch 4"].push_back(m4);
    found["matrices of a step over copy, batch 8"].push_back(m8);
    found["matrices of a step over copy, batch 64"].push_back(m64);
    found["matrices of 2048 tokens, TFLOP/s"].push_back(rate / 1e12);
    found["attention over copy, 64 x 1024"].push_back(a64);
    found["attention over copy, 1 x 8192"].push_back(a1);
  }
  const std::map<std::string, double> targets = {{"matrices of a step over copy, batch 1", 0.85},
                                                 {"matrices of a step over copy, batch 64", 0.70},
                                                 {"attention over copy, 64 x 1024", 0.70}};
  for (const auto& [what, values] : found) {
    const auto target = targets.find(what);
    print("ChatGLM3-6B bf16: " + what, values, target == targets.end() ? 0 : target->second);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 9;
  int layers = 28;
  for (int index = 1; index + 1 < argc; index += 2) {
    if (std::strcmp(argv[index], "--rounds") == 0) rounds = std::max(1, std::atoi(argv[index + 1]));
    if (std::strcmp(argv[index], "--layers") == 0) layers = std::max(1, std::atoi(argv[index + 1]));
  }
  try {
    return run_bench(rounds, layers);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
