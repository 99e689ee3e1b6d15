// SPDX-License-Identifier: Apache-2.0
// Speed of Backend::matmul on the shapes of ChatGLM3-6B, as JSON lines. Every sample stands between
// two measurements of the read bandwidth; `of_bandwidth` is the weights' rate over the better of
// the two.
//
//   matmul_bench [--isa NAME] [--samples N]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/sizes.h"
#include "tests/support/bandwidth.h"

namespace {

using namespace trireme;

struct Shape {
  int64_t n = 0;
  int64_t k = 0;
};

struct Case {
  std::string isa;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t rows = 0;
  int threads = 1;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Small distinct values; denormals and constants would flatter or punish some units.
void fill(void* data, DType dtype, int64_t count) {
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    if (dtype == DType::kF32) {
      static_cast<float*>(data)[i] = value;
    } else {
      static_cast<uint16_t*>(data)[i] = float_to_bf16(value);
    }
  }
}

double seconds_of(Backend& backend, const Tensor& y, const Tensor& x, const Weight& w) {
  const auto begin = std::chrono::steady_clock::now();
  backend.matmul(y, x, w, nullptr);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void run(const Case& c, const ReadBandwidth& memory, int samples) {
  const auto backend = make_backend({"cpu", c.threads, c.isa});
  const int64_t bytes = packed_weight_bytes(c.dtype, c.shape.n, c.shape.k);
  // One copy will do: the 1 GiB that the probe reads between two samples drives it from the caches.
  Weight w = backend->make_weight(c.dtype, c.shape.n, c.shape.k);
  fill(w.storage.data(), c.dtype, bytes / element_size(c.dtype));
  const DType x_type = activation_dtype(c.dtype);
  const Buffer x_data = backend->allocate(static_cast<size_t>(c.rows * c.shape.k * 4));
  const Buffer y_data = backend->allocate(static_cast<size_t>(c.rows * c.shape.n * 4));
  fill(x_data.data(), x_type, c.rows * c.shape.k);
  const Tensor x(x_data.data(), x_type, c.rows, c.shape.k);
  const Tensor y(y_data.data(), DType::kF32, c.rows, c.shape.n);

  seconds_of(*backend, y, x, w);
  std::vector<double> times;
  std::vector<double> fractions;
  std::vector<double> rates;
  double before = memory.measure(c.threads);
  for (int i = 0; i < samples; ++i) {
    const double time = seconds_of(*backend, y, x, w);
    const double after = memory.measure(c.threads);
    times.push_back(time);
    rates.push_back(std::max(before, after));
    fractions.push_back(static_cast<double>(bytes) / time / rates.back());
    before = after;
  }
  const double time = median(times);
  const double products = 2.0 * static_cast<double>(c.rows * c.shape.n * c.shape.k);
  std::printf(
      "{\"bench\": \"matmul\", \"isa\": \"%s\", \"dtype\": \"%s\", \"n\": %lld, \"k\": %lld, "
      "\"m\": "
      "%lld, \"threads\": %d, \"samples\": %d, \"ms\": %.3f, \"ms_min\": %.3f, \"weight_gb_s\": "
      "%.2f, \"read_gb_s\": %.2f, \"of_bandwidth\": %.3f, \"gflop_s\": %.1f}\n",
      c.isa.c_str(), dtype_name(c.dtype), static_cast<long long>(c.shape.n),
      static_cast<long long>(c.shape.k), static_cast<long long>(c.rows), c.threads, samples,
      time * 1e3, *std::min_element(times.begin(), times.end()) * 1e3,
      static_cast<double>(bytes) / time * 1e-9, median(rates) * 1e-9, median(fractions),
      products / time * 1e-9);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::string only;
  int samples = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--isa") == 0) only = argv[i + 1];
    if (std::strcmp(argv[i], "--samples") == 0) samples = std::max(1, std::atoi(argv[i + 1]));
  }
  const ReadBandwidth memory;
  for (const std::string& isa : cpu_isas()) {
    if (!only.empty() && only != isa) continue;
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      for (const Shape shape : {Shape{4608, 4096}, Shape{27392, 4096}, Shape{4096, 13696}}) {
        for (const int64_t rows : {1, 8, 512}) {
          for (const int threads : {1, 2}) run({isa, dtype, shape, rows, threads}, memory, samples);
        }
      }
    }
  }
}
