// SPDX-License-Identifier: Apache-2.0
// A model on one GPU through the whole engine, over what the same GPU reaches by itself in the same
// run; medians of interleaved rounds, as JSON lines with the bars of the issue.
//
//   gpu_model_bench MODEL [--dtypes bf16,int8,int4] [--rounds N]
//
// The first dtype has every bar; the others are compared with it. "bf16:eager" is bf16 without CUDA
// graphs. All are loaded at once and take turns.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/bench/engine_load.h"
#include "tests/gpu/device_speed.h"
#include "tests/support/bars.h"
#include "tests/support/rank_job.h"
#include "worker/batch_tensors.h"
#include "worker/comm/local.h"
#include "worker/stage.h"

namespace {

using namespace trireme;

constexpr int32_t kPrefill = 2048;
constexpr int32_t kSequences = 64;
constexpr int32_t kContext = 1024;  // on average over the timed steps at 64 sequences
constexpr int32_t kOverheadSequences = 32;
constexpr double kHostMicroseconds = 60;

// Bytes that a step of decode must read: every matrix but the embedding, and the cache.
double step_bytes(const Job& job, double sequences, double context) {
  const ModelSpec& model = job.model();
  double weights = 0;  // as the one rank has them
  for (const StageSpec& stage : job.placement().replicas(0).stages()) {
    for (const ShardSpec& shard : stage.shards()) {
      weights += static_cast<double>(shard.weight_bytes());
    }
  }
  const auto size = static_cast<double>(element_size(DType::kBF16));
  if (!model.tied_embeddings()) weights -= double(model.vocab_size()) * model.hidden_size() * size;
  const double kv = 2.0 * model.num_layers() * model.num_kv_heads() * model.head_dim() * size;
  return weights + sequences * context * kv;
}

// The model's steps of decode once more without an engine, for what the GPU itself takes.
class Steps {
 public:
  Steps(const std::string& model, const std::string& dtype, Backend& backend, const Noise& noise)
      : backend_(backend) {
    RankJobOptions options;
    options.model_path = model;
    options.dtype = dtype;
    options.devices = {DEVICE_KIND_CUDA};
    options.max_sequences = kOverheadSequences;
    const Assign assign = make_assignments(options)[0];
    const auto checkpoint = Checkpoint::open(model);
    transport_ = make_local_transport(make_local_hub(1), 1, cancellation_);
    stage_ = std::make_unique<Stage>(assign, *checkpoint, backend, *transport_, *transport_,
                                     LoadListener{});
    stage_->allocate_cache(assign.placement().num_blocks());
    for (int32_t s = 0; s < kOverheadSequences; ++s) {
      SequenceChunk& chunk = *batch_.add_chunks();
      chunk.set_sequence(static_cast<uint64_t>(s + 1));
      chunk.set_position(kPosition);
      chunk.add_token_ids(3 + s);
      const int32_t block_size = assign.placement().block_size();
      for (int32_t i = 0; i <= kPosition / block_size; ++i) {
        chunk.add_block_table(s * (kPosition / block_size + 1) + i);
      }
      chunk.set_sample(true);
      chunk.mutable_draw()->set_top_p(1);  // and greedy
    }
    for (int i = 0; i < 3; ++i) stage_->run(batch_);  // the third one is a replay
    tensors_ = std::make_unique<BatchTensors>(backend, assign.model(), assign.placement());
    tensors_->load(batch_, true);
    vocab_ = assign.model().vocab_size();
    logits_ = backend.allocate(size_t{kOverheadSequences} * vocab_ * sizeof(float));
    noise.fill(logits_);
  }

  // Of one step, in seconds.
  double device_time(Stopwatch& watch, const DeviceCopy& copy) {
    return replay_time(watch) + rest_time(watch, copy);
  }

 private:
  static constexpr int32_t kPosition = 100;

  // Replays one behind the other keep the GPU busy.
  double replay_time(Stopwatch& watch) {
    constexpr int kSteps = 20;
    const uint64_t key = tensors_->key();
    stage_->run(batch_);  // records it anew where scratch has grown since
    return watch.time([&] {
      for (int i = 0; i < kSteps; ++i) {
        backend_.replay(key, [] { throw Error(Code::kInternal, "the step was not recorded"); });
      }
    }) / kSteps;
  }

  // The batch's way up and the draws, queued while a copy keeps the GPU busy. The same with a wait
  // alone goes off: it has the way of the ids down, and what the host takes to wake up.
  double rest_time(Stopwatch& watch, const DeviceCopy& copy) {
    std::vector<int32_t> drawn(kOverheadSequences);
    const std::vector<DrawRow> rows(drawn.size());
    const Tensor logits(logits_.data(), DType::kF32, kOverheadSequences, vocab_);
    std::vector<double> took;
    for (int round = 0; round < 9; ++round) {
      const double all = watch.time([&] {
        copy.queue();
        tensors_->load(batch_, true);
        backend_.sample(drawn, logits, rows, {}, vocab_);
      });
      const double wait = watch.time([&] {
        copy.queue();
        backend_.download(drawn.data(), logits_.data(), drawn.size() * sizeof(int32_t));
      });
      took.push_back(all - wait);
    }
    return median(took);
  }

  Backend& backend_;
  Cancellation cancellation_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Stage> stage_;
  MicroBatch batch_;
  std::unique_ptr<BatchTensors> tensors_;
  Buffer logits_;
  int32_t vocab_ = 0;
};

// The weights once more, from files that the page cache has, beside what the copy engine gives.
// Bytes per second.
class Loading {
 public:
  Loading(const std::string& model, const std::string& dtype) {
    RankJobOptions options;
    options.model_path = model;
    options.dtype = dtype;
    options.devices = {DEVICE_KIND_CUDA};
    assign_ = make_assignments(options)[0];
    checkpoint_ = Checkpoint::open(model);
    backend_ = make_backend_of(assign_);
    cuda::cuda_check(cudaMallocHost(&pinned_, kBytes), "allocate pinned memory");
    std::memset(pinned_, 1, kBytes);
    device_ = backend_->allocate(kBytes);
  }
  ~Loading() { cudaFreeHost(pinned_); }
  Loading(const Loading&) = delete;

  double weights_rate() {
    const StageSpec& stage = assign_.placement().replicas(0).stages(0);
    const auto begin = std::chrono::steady_clock::now();
    const uint64_t before = checkpoint_->bytes_read();
    const Weights weights = load_weights(assign_.model(), stage, stage.shards(0),
                                         assign_.placement(), *checkpoint_, *backend_, {});
    backend_->synchronize();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    return static_cast<double>(checkpoint_->bytes_read() - before) / took.count();
  }

  double engine_rate(Stopwatch& watch) {
    return kBytes / watch.time([&] {
      cuda::cuda_check(cudaMemcpyAsync(device_.data(), pinned_, kBytes, cudaMemcpyHostToDevice,
                                       cuda::stream_of(*backend_)),
                       "copy to the GPU");
    });
  }

  cudaStream_t stream() { return cuda::stream_of(*backend_); }
  int threads() const { return backend_->team().num_threads(); }

 private:
  static constexpr size_t kBytes = size_t{1} << 30;

  Assign assign_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  void* pinned_ = nullptr;
  Buffer device_;
};

using Found = std::map<std::string, std::vector<double>>;

struct Variant {
  std::string name;  // "int4", "bf16:eager"
  std::unique_ptr<Job> job;
  Found found;
};

constexpr const char* kBatch1 = "decode, batch 1, tokens/s";
constexpr const char* kBatch32 = "decode, batch 32, tokens/s";
constexpr const char* kBatch64 = "decode, batch 64 at 1024, tokens/s";
constexpr const char* kPrefillRate = "prefill of 2048, tokens/s";

Variant load_variant(const std::string& model, const std::string& name) {
  const size_t colon = std::min(name.find(':'), name.size());
  Options options;
  options.placement.model = model;
  options.placement.dtype = name.substr(0, colon);
  options.placement.enforce_eager = name.substr(colon) == ":eager";
  options.placement.context = kPrefill + 256;
  options.placement.max_sequences = kSequences;
  options.placement.max_batch_tokens = kPrefill;
  Variant variant{name, std::make_unique<Job>(options), {}};
  const auto begun = std::chrono::steady_clock::now();
  variant.job->load([] { return false; });
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - begun;
  std::printf("{\"machine\": \"%s\", \"dtype\": \"%s\", \"load_s\": %.2f}\n",
              variant.job->topology().ranks(0).device().name().c_str(), name.c_str(), load.count());
  std::fflush(stdout);
  return variant;
}

// One round's speeds; `copied`: bytes per second of a copy. Kept but for the first, which warms up.
void measure(Variant& variant, double copied, bool keep) {
  Job& job = *variant.job;
  const double batch1 = decode_rate(job, {.prompt = 16, .warm = 8, .timed = 128});
  const double batch32 =
      decode_rate(job, {.sequences = kOverheadSequences, .prompt = 64, .warm = 8, .timed = 64});
  // While the last prompts are read the first sequences are some 31 tokens ahead.
  const double batch64 =
      decode_rate(job, {.sequences = kSequences, .prompt = kContext - 56, .warm = 8, .timed = 64});
  const double prefill = prefill_rate(job, kPrefill);
  if (!keep) return;
  Found& found = variant.found;
  found[kBatch1].push_back(batch1);
  found[kBatch32].push_back(batch32);
  found[kBatch64].push_back(batch64);
  found[kPrefillRate].push_back(prefill);
  found["batch 1 over its roofline"].push_back(batch1 * step_bytes(job, 1, 88) / copied);
  found["batch 64 at 1024 over its roofline"].push_back(
      batch64 / kSequences * step_bytes(job, kSequences, kContext) / copied);
}

void print(const Variant& variant, const Variant& first) {
  const std::string of = variant.job->model().name() + " " + variant.name + ": ";
  const bool bf16 = variant.name == "bf16";
  const std::map<std::string, double> targets = {{"batch 1 over its roofline", 0.85},
                                                 {"batch 64 at 1024 over its roofline", 0.70},
                                                 {"prefill over cuBLAS's rate", 0.65},
                                                 {"weights loaded over the copy engine", 0.80}};
  for (const auto& [what, values] : variant.found) {
    const auto target = targets.find(what);
    if (what.starts_with("host's part")) {
      print_limit(of + what, values, kHostMicroseconds);
    } else {
      print_bar(of + what, values, bf16 && target != targets.end() ? target->second : 0);
    }
  }
  if (&variant == &first) return;
  const bool bf16_first = first.name == "bf16";
  for (const char* what : {kBatch1, kBatch32, kBatch64, kPrefillRate}) {
    std::vector<double> times;
    for (size_t round = 0; round < variant.found.at(what).size(); ++round) {
      times.push_back(variant.found.at(what)[round] / first.found.at(what)[round]);
    }
    const bool bar = std::strcmp(what, kBatch1) == 0 && variant.name == "int4" && bf16_first;
    print_bar(of + what + " over that of " + first.name, times, bar ? 2.2 : 0);
  }
}

MatrixShapes shapes_of(const ModelSpec& spec) {
  const int64_t q = int64_t{spec.num_heads()} * spec.head_dim();
  return {.layers = spec.num_layers(),
          .hidden = spec.hidden_size(),
          .qkv = q + 2 * int64_t{spec.num_kv_heads()} * spec.head_dim(),
          .attended = q,
          .ffn = spec.ffn_size(),
          .vocab = spec.vocab_size()};
}

int run_bench(const std::string& model, const std::vector<std::string>& names, int rounds) {
  std::vector<Variant> variants;
  for (const std::string& name : names) variants.push_back(load_variant(model, name));
  Variant& first = variants.front();

  const auto backend = make_backend({.device = "cuda"});
  Stopwatch watch(cuda::stream_of(*backend));
  const Noise noise(*backend);
  const DeviceCopy copy(*backend, noise);
  Matrices matrices(*backend, noise, shapes_of(first.job->model()), kPrefill);
  const std::string dtype = first.name.substr(0, first.name.find(':'));
  Steps steps(model, dtype, *backend, noise);
  Loading loading(model, dtype);
  Stopwatch loading_watch(loading.stream());
  for (int round = -1; round < rounds; ++round) {
    const bool keep = round >= 0;
    const double copied = copy.measure(watch);
    for (Variant& variant : variants) measure(variant, copied, keep);
    matrices.multiply(kPrefill, false);
    const double rate =
        matrices.operations(kPrefill) / watch.time([&] { matrices.multiply(kPrefill, false); });
    const double device = steps.device_time(watch, copy);
    const double engine = loading.engine_rate(loading_watch);
    const double loaded = loading.weights_rate();
    if (!keep) continue;
    Found& found = first.found;
    found["copy engine, GB/s"].push_back(engine / 1e9);
    found["weights loaded by " + std::to_string(loading.threads()) + " threads, GB/s"].push_back(
        loaded / 1e9);
    found["weights loaded over the copy engine"].push_back(loaded / engine);
    found["copy, GB/s"].push_back(copied / 1e9);
    found["matrices of 2048 tokens, TFLOP/s"].push_back(rate / 1e12);
    found["prefill over cuBLAS's rate"].push_back(found[kPrefillRate].back() / kPrefill *
                                                  matrices.operations(kPrefill) / rate);
    found["device's part of a step of 32, us"].push_back(device * 1e6);
    found["host's part of a step of 32, us"].push_back(
        (kOverheadSequences / found[kBatch32].back() - device) * 1e6);
  }
  for (const Variant& variant : variants) print(variant, first);
  return 0;
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  std::string model;
  std::vector<std::string> names = {"bf16"};
  int rounds = 5;
  for (int index = 1; index < argc; ++index) {
    if (std::strcmp(argv[index], "--rounds") == 0 && index + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++index]));
    } else if (std::strcmp(argv[index], "--dtypes") == 0 && index + 1 < argc) {
      names = split(argv[++index]);
    } else {
      model = argv[index];
    }
  }
  if (model.empty() || names.empty()) {
    std::fprintf(stderr, "usage: gpu_model_bench MODEL [--dtypes D,D:eager] [--rounds N]\n");
    return 2;
  }
  try {
    return run_bench(model, names, rounds);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
