// SPDX-License-Identifier: Apache-2.0
// What a GPU's operations reach on the shapes of ChatGLM3-6B, over what its memory's copies reach
// in the same run; medians of interleaved rounds, as JSON lines with the bars of the issue.
//
//   gpu_bench [--rounds N] [--layers N]
#include <cuda_runtime_api.h>

#include <algorithm>
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
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/gpu/device_speed.h"
#include "tests/gpu/paged_attention.h"
#include "tests/support/bars.h"

namespace {

using namespace trireme;

// Layers of int8 or int4 beside those of bf16, in the same round.
class Integers {
 public:
  Integers(Backend& backend, const Noise& noise, int layers, DType dtype, int64_t most_rows)
      : name_(dtype_name(dtype)),
        matrices_(backend, noise, {.layers = layers, .dtype = dtype}, most_rows) {}
  void measure(Stopwatch& watch, Matrices& bf16, double copied, bool keep) {
    for (const int64_t rows : {1, 2, 8, 16, 32, 64, 2048}) {
      const bool with_head = rows <= 64;
      const double wide = watch.time([&] { bf16.multiply(rows, with_head); });
      const double narrow = watch.time([&] { matrices_.multiply(rows, with_head); });
      if (!keep) continue;
      const std::string of = ", batch " + std::to_string(rows);
      found_["matrices of a step, times bf16's speed" + of].push_back(wide / narrow);
      if (!with_head) continue;
      found_["matrices of a step over copy" + of].push_back(matrices_.bytes() / narrow / copied);
    }
  }
  void print() const {
    const bool int4 = std::strcmp(name_, "int4") == 0;
    for (const auto& [what, values] : found_) {
      const bool speed = what == "matrices of a step, times bf16's speed, batch 1";
      print_bar("ChatGLM3-6B " + std::string(name_) + ": " + what, values, int4 && speed ? 2.2 : 0);
    }
  }

 private:
  const char* const name_;
  Matrices matrices_;
  std::map<std::string, std::vector<double>> found_;
};

int run_bench(int rounds, int layers) {
  const auto backend = make_backend({.device = "cuda"});
  std::printf("{\"machine\": \"%s\", \"layers\": %d}\n", backend->name().c_str(), layers);
  Stopwatch watch(cuda::stream_of(*backend));
  const Noise noise(*backend);
  const DeviceCopy copy(*backend, noise);
  constexpr int64_t kPrefill = 2048;
  Matrices matrices(*backend, noise, {.layers = layers}, kPrefill);
  std::deque<Integers> integers;
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    integers.emplace_back(*backend, noise, layers, dtype, kPrefill);
  }
  // Of several layers, so that a launch is no part of what is measured, nor the cache.
  constexpr int kLayers = 16;
  const AttentionShape of_many{.sequences = 64, .context = 1024};
  const AttentionShape of_one{.context = 8192};
  PagedAttention many(*backend, noise, of_many, kLayers);
  PagedAttention one(*backend, noise, of_one, kLayers);
  std::map<std::string, std::vector<double>> found;
  for (int round = -1; round < rounds; ++round) {  // the first one chooses algorithms
    const double copied = copy.measure(watch);
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
    const auto attend = [&](PagedAttention& attention, const AttentionShape& shape) {
      return of_copy(2.0 * kLayers * static_cast<double>(shape.bytes_of_keys()), [&] {
        for (int layer = 0; layer < kLayers; ++layer) attention.run(layer);
      });
    };
    const double a64 = attend(many, of_many);
    const double a1 = attend(one, of_one);
    for (Integers& all : integers) all.measure(watch, matrices, copied, round >= 0);
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
    print_bar("ChatGLM3-6B bf16: " + what, values, target == targets.end() ? 0 : target->second);
  }
  for (const Integers& all : integers) all.print();
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
