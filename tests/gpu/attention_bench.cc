// SPDX-License-Identifier: Apache-2.0
// Our attention beside cuDNN's fused one on the same shapes, numbers and block tables: a line of a
// table for each shape, and JSON lines. Both are CUDA graphs of many layers, each with a cache of
// its own, so that neither launches nor the GPU's cache have a part in it; rounds take turns, and
// what is told is their median. Both results are compared with sums in double.
//
// Where they differ: cuDNN's queries are bf16, ours fp32 (as rotary leaves them). Over a contiguous
// cache cuDNN needs no table, but the engine has none.
//
//   attention_bench [--rounds N] [--tiny]     --tiny: small shapes, for a machine without a GPU
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/gpu/attention_table.h"
#include "tests/gpu/cudnn_attention.h"
#include "tests/gpu/device_speed.h"
#include "tests/gpu/paged_attention.h"
#include "tests/support/bars.h"

namespace {

using namespace trireme;
using cuda::cuda_check;

struct Case {
  std::string name;
  AttentionShape shape;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int32_t kv_heads : {2, 8}) {
    const std::string model = kv_heads == 2 ? "ChatGLM3-6B 32/2, " : "GQA 32/8, ";
    const auto add = [&](const std::string& what, int32_t sequences, int32_t queries,
                         int32_t context) {
      all.push_back(
          {model + what,
           {.kv_heads = kv_heads, .sequences = sequences, .queries = queries, .context = context}});
    };
    add("prefill of 2048", 1, 2048, 2048);
    add("512 more at 4096", 1, 512, 4608);
    for (const auto& [batch, context] : std::vector<std::pair<int32_t, int32_t>>{
             {1, 1024}, {1, 8192}, {32, 1024}, {32, 8192}, {64, 1024}}) {
      add("decode of " + std::to_string(batch) + " x " + std::to_string(context), batch, 1,
          context);
    }
  }
  return all;
}

std::vector<Case> tiny_cases() {
  return {{"prefill of 80", {.heads = 4, .head_dim = 64, .queries = 80, .context = 80}},
          {"20 more at 60", {.heads = 4, .head_dim = 64, .queries = 20, .context = 80}},
          {"decode of 3 x 272", {.heads = 4, .head_dim = 64, .sequences = 3, .context = 272}}};
}

// A run of all layers as a CUDA graph; as it is where it cannot be recorded.
class Recorded {
 public:
  Recorded(cudaStream_t stream, std::function<void()> run) : stream_(stream), run_(std::move(run)) {
    run_();  // loads and allocates what the first run does
    cuda_check(cudaStreamSynchronize(stream), "run attention");
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "record");
    std::string failed;
    try {
      run_();
    } catch (const std::exception& error) {
      failed = error.what();
    }
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (failed.empty() && ended == cudaSuccess &&
        cudaGraphInstantiate(&graph_, graph, 0) == cudaSuccess) {
      cudaGraphDestroy(graph);
      return;
    }
    graph_ = nullptr;
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();  // else the next launch would be blamed
    std::printf("not recorded as a CUDA graph, so launched one by one: %s\n", failed.c_str());
  }
  ~Recorded() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }
  Recorded(const Recorded&) = delete;

  void run() const {
    if (graph_ == nullptr) return run_();
    cuda_check(cudaGraphLaunch(graph_, stream_), "run a recording");
  }

 private:
  const cudaStream_t stream_;
  const std::function<void()> run_;
  cudaGraphExec_t graph_ = nullptr;
};

struct Bench {
  Backend& backend;
  const Noise& noise;
  Stopwatch& watch;
  Cudnn* cudnn;  // nullptr: there is none
  std::string no_cudnn;
  int rounds;
  int64_t bytes_in_turn;  // of caches: several times what the GPU's own cache holds

  // One of those that take turns.
  struct Entry {
    TimedAttention* timed;
    std::unique_ptr<Cudnn::Attention> fused;  // nullptr: ours
    CacheLayout layout;
    std::unique_ptr<Recorded> recorded;
  };

  void add(std::vector<Entry>& entries, TimedAttention& timed, PagedAttention& attention,
           std::unique_ptr<Cudnn::Attention> fused, CacheLayout layout) const {
    Entry entry{&timed, std::move(fused), layout, nullptr};
    Cudnn::Attention* const theirs = entry.fused.get();
    const auto run = [&attention, theirs] {
      for (int layer = 0; layer < attention.layers(); ++layer) {
        if (theirs == nullptr) {
          attention.run(layer);
        } else {
          theirs->run(attention.operands(layer));
        }
      }
    };
    entry.recorded = std::make_unique<Recorded>(cuda::stream_of(backend), run);
    attention.clear();
    entry.recorded->run();
    timed.error = attention.error(attention.layers() - 1, layout);
    entries.push_back(std::move(entry));
  }

  void add_cudnn(std::vector<Entry>& entries, TimedAttention& timed, PagedAttention& attention,
                 const AttentionShape& shape, CacheLayout layout) const {
    timed.missing = no_cudnn;
    if (cudnn == nullptr) return;
    try {
      auto fused = cudnn->attention(backend, shape, layout);
      std::printf("%s: plan %s\n", layout == CacheLayout::kPaged ? "blocks" : "contiguous",
                  fused->plan().c_str());
      add(entries, timed, attention, std::move(fused), layout);
    } catch (const std::exception& error) {  // the frontend's own too
      timed.missing = error.what();
    }
  }

  AttentionRow measure(const Case& one) const {
    const AttentionShape& shape = one.shape;
    const int64_t bytes = 2 * shape.bytes_of_keys();
    const auto layers = std::max<int64_t>(2, (bytes_in_turn + bytes - 1) / bytes);
    std::printf("%s, %lld layers\n", one.name.c_str(), static_cast<long long>(layers));
    PagedAttention attention(backend, noise, shape, static_cast<int>(layers));
    AttentionRow row;
    row.shape = one.name;
    row.bytes = static_cast<double>(bytes + 4 * shape.tokens() * shape.cols());
    row.operations = shape.operations();
    std::vector<Entry> entries;
    add(entries, row.ours, attention, nullptr, CacheLayout::kPaged);
    add_cudnn(entries, row.paged, attention, shape, CacheLayout::kPaged);
    add_cudnn(entries, row.contiguous, attention, shape, CacheLayout::kContiguous);
    for (int round = -1; round < rounds; ++round) {  // the first one warms up
      for (Entry& entry : entries) {
        const double seconds = watch.time([&] { entry.recorded->run(); });
        if (round >= 0) entry.timed->seconds.push_back(seconds / attention.layers());
      }
    }
    return row;
  }
};

void print_details(const AttentionRow& row) {
  const auto print = [&](const char* whose, const TimedAttention& timed) {
    if (timed.measured()) {
      std::vector<double> us;
      for (const double seconds : timed.seconds) us.push_back(1e6 * seconds);
      print_bar(row.shape + ": " + whose + ", us", us, 0);
      print_limit(row.shape + ": " + whose + ", error", {timed.error}, AttentionRow::kMostError);
    } else {
      std::printf("SKIPPED: %s, %s: %s\n", row.shape.c_str(), whose, timed.missing.c_str());
    }
  };
  print("ours", row.ours);
  print("cuDNN, our blocks", row.paged);
  print("cuDNN, contiguous", row.contiguous);
  std::fflush(stdout);
}

int run_bench(int rounds, bool tiny) {
  const auto backend = make_backend({.device = "cuda"});
  std::printf("{\"machine\": \"%s\", \"rounds\": %d}\n", backend->name().c_str(), rounds);
  Stopwatch watch(cuda::stream_of(*backend));
  const Noise noise(*backend);
  std::unique_ptr<Cudnn> cudnn;
  std::string no_cudnn;
  try {
    cudnn = std::make_unique<Cudnn>(cuda::stream_of(*backend));
    std::printf("cuDNN: %s\n", cudnn->description().c_str());
  } catch (const std::exception& error) {
    no_cudnn = error.what();
    std::printf("cuDNN: none: %s\n", no_cudnn.c_str());
  }
  const Bench bench{
      *backend, noise, watch, cudnn.get(), no_cudnn, rounds, tiny ? 1 : int64_t{256} << 20};
  std::vector<AttentionRow> rows;
  for (const Case& one : tiny ? tiny_cases() : cases()) {
    rows.push_back(bench.measure(one));
    print_details(rows.back());
  }
  std::printf("%s\n|---|---|---|---|---|---|---|---|\n", AttentionRow::head().c_str());
  for (const AttentionRow& row : rows) std::printf("%s\n", row.line().c_str());
  const bool right =
      std::all_of(rows.begin(), rows.end(), [](const AttentionRow& row) { return row.right(); });
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 9;
  bool tiny = false;
  for (int index = 1; index < argc; ++index) {
    if (std::strcmp(argv[index], "--tiny") == 0) tiny = true;
    if (std::strcmp(argv[index], "--rounds") == 0 && index + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[index + 1]));
    }
  }
  try {
    return run_bench(rounds, tiny);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
