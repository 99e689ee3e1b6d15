// SPDX-License-Identifier: Apache-2.0
// Prefill and decode speed of a model through the whole engine (local ranks), as JSON lines, with
// the memory bandwidth measured before and after each round; then the bars of the issue. All
// variants are loaded at once and take turns, so that a slow minute of the machine hits all of
// them.
//
//   model_bench MODEL [--rounds N] [--dtype D]
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "launch/job.h"
#include "tests/bench/engine_load.h"
#include "tests/support/bandwidth.h"
#include "tests/support/bars.h"

namespace {

using namespace trireme;

constexpr int32_t kPrefillTokens = 512;

struct Variant {
  std::string name;
  int pp = 1;
  int threads = 1;
  std::unique_ptr<Job> job;
};

double decode_rate(Variant& variant, int sequences) {
  return trireme::decode_rate(*variant.job, {.sequences = sequences});
}

void print_row(const std::string& variant, const char* what, const std::vector<double>& values) {
  std::printf(
      "{\"variant\": \"%s\", \"what\": \"%s\", \"tokens_per_s\": %.2f, \"min\": %.2f, "
      "\"max\": %.2f, \"rounds\": %zu}\n",
      variant.c_str(), what, median(values), *std::min_element(values.begin(), values.end()),
      *std::max_element(values.begin(), values.end()), values.size());
}

// Bytes of weights that one decode step of the whole model reads.
double step_bytes(const ModelSpec& model, DType dtype) {
  double parameters = 0;
  for (const ModuleSpec& module : model.modules()) {
    parameters += static_cast<double>(module.parameters());
  }
  // The embedding is a look-up unless it is the head as well.
  if (!model.tied_embeddings()) parameters -= double(model.vocab_size()) * model.hidden_size();
  return parameters * static_cast<double>(element_size(dtype));
}

struct Samples {
  std::vector<double> prefill, batch1, batch8, batch16, of_bandwidth;
};

void measure(Variant& variant, const ReadBandwidth& bandwidth, Samples& samples) {
  const int threads = variant.pp * variant.threads;
  const DType dtype = parse_dtype(variant.job->placement().dtype()).value();
  const double before = bandwidth.measure(threads);
  samples.batch1.push_back(decode_rate(variant, 1));
  const double after = bandwidth.measure(threads);
  samples.of_bandwidth.push_back(samples.batch1.back() * step_bytes(variant.job->model(), dtype) /
                                 std::max(before, after));
  samples.batch8.push_back(decode_rate(variant, 8));
  samples.batch16.push_back(decode_rate(variant, 16));
  samples.prefill.push_back(prefill_rate(*variant.job, kPrefillTokens));
  std::printf(
      "{\"variant\": \"%s\", \"bandwidth_gb_s\": [%.1f, %.1f], \"decode1\": %.2f, "
      "\"decode8\": %.2f, \"decode16\": %.2f, \"prefill\": %.1f}\n",
      variant.name.c_str(), before / 1e9, after / 1e9, samples.batch1.back(), samples.batch8.back(),
      samples.batch16.back(), samples.prefill.back());
  std::fflush(stdout);
}

int run_bench(const std::string& model, const std::string& dtype, int rounds) {
  std::vector<Variant> variants;
  variants.push_back({"1 rank x 1 thread", 1, 1, nullptr});
  variants.push_back({"1 rank x 2 threads", 1, 2, nullptr});
  variants.push_back({"pp 2, 2 ranks x 1 thread", 2, 1, nullptr});
  for (Variant& variant : variants) {
    Options options;
    options.placement.model = model;
    options.placement.dtype = dtype;
    options.placement.pp = variant.pp;
    options.placement.threads = variant.threads;
    options.placement.context = 2048;
    variant.job = std::make_unique<Job>(options);
    variant.job->load([] { return false; });
    decode_rate(variant, 8);  // the first steps size the scratch
  }
  const ReadBandwidth bandwidth;
  std::vector<Samples> samples(variants.size());
  std::vector<double> pipeline;  // pp 2 with 16 sequences over one two-thread rank with 8
  for (int round = 0; round < rounds; ++round) {
    for (size_t index = 0; index < variants.size(); ++index) {
      measure(variants[index], bandwidth, samples[index]);
    }
    // The pair that is compared, back to back, in alternating order.
    const bool pipeline_first = round % 2 == 0;
    double ours = pipeline_first ? decode_rate(variants[2], 16) : 0;
    const double whole = decode_rate(variants[1], 8);
    if (!pipeline_first) ours = decode_rate(variants[2], 16);
    pipeline.push_back(ours / whole);
  }
  for (size_t index = 0; index < variants.size(); ++index) {
    print_row(variants[index].name, "prefill 512", samples[index].prefill);
    print_row(variants[index].name, "decode batch 1", samples[index].batch1);
    print_row(variants[index].name, "decode batch 8", samples[index].batch8);
    print_row(variants[index].name, "decode batch 16", samples[index].batch16);
  }
  const std::string name =
      variants[0].job->model().name() + " " + variants[0].job->placement().dtype();
  const std::string device = variants[0].job->topology().ranks(0).device().name() + ", " +
                             variants[0].job->topology().ranks(0).device().isa();
  std::printf("{\"machine\": \"%s\"}\n", device.c_str());
  // A target for weights that no cache holds; a small model's step is mostly not about memory.
  const bool large = variants[0].job->model().hidden_size() >= 2048;
  for (size_t index = 0; index < 2; ++index) {
    const std::string what = "decode batch 1 over read bandwidth, " + variants[index].name;
    if (large) {
      print_bar(name + ": " + what, samples[index].of_bandwidth, 0.70);
    } else {
      print_row(variants[index].name, what.c_str(), samples[index].of_bandwidth);
    }
  }
  print_bar(name + ": pp 2 (16 sequences) over one two-thread rank (8)", pipeline, 0.85);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string model, dtype;
  int rounds = 9;
  for (int index = 1; index < argc; ++index) {
    if (std::strcmp(argv[index], "--rounds") == 0 && index + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++index]));
    } else if (std::strcmp(argv[index], "--dtype") == 0 && index + 1 < argc) {
      dtype = argv[++index];
    } else {
      model = argv[index];
    }
  }
  if (model.empty()) {
    std::fprintf(stderr, "usage: model_bench MODEL [--rounds N] [--dtype D]\n");
    return 2;
  }
  try {
    return run_bench(model, dtype, rounds);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
