// SPDX-License-Identifier: Apache-2.0
// A model on one GPU through the whole engine, over what the same GPU reaches by itself in the same
// run; medians of interleaved rounds, as JSON lines with the bars of the issue.
//
//   gpu_model_bench MODEL [--dtype D] [--rounds N]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/error.h"
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
constexpr int32_t kContext = 1024;  // of the middle of the timed steps at 64 sequences
constexpr int32_t kOverheadSequences = 32;

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
  Steps(const std::string& model, const std::string& dtype, Backend& backend) : backend_(backend) {
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
    }
    for (int i = 0; i < 3; ++i) stage_->run(batch_);  // the third one is a replay
    BatchTensors tensors(backend, assign.model(), assign.placement());
    tensors.load(batch_, true);
    key_ = tensors.key();
  }

  // Of one step, in seconds: replays one behind the other keep the GPU busy.
  double device_time(Stopwatch& watch) {
    constexpr int kSteps = 20;
    return watch.time([&] {
      for (int i = 0; i < kSteps; ++i) {
        backend_.replay(key_, [] { throw Error(Code::kInternal, "the step was not recorded"); });
      }
    }) / kSteps;
  }

 private:
  static constexpr int32_t kPosition = 100;

  Backend& backend_;
  Cancellation cancellation_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Stage> stage_;
  MicroBatch batch_;
  uint64_t key_ = 0;
};

struct Round {
  double batch1 = 0, batch32 = 0, batch64 = 0, prefill = 0;  // tokens/s
};

Round measure(Job& job) {
  Round round;
  round.batch1 = decode_rate(job, {.prompt = 16, .warm = 8, .timed = 128});
  round.batch32 =
      decode_rate(job, {.sequences = kOverheadSequences, .prompt = 64, .warm = 8, .timed = 64});
  round.batch64 =
      decode_rate(job, {.sequences = kSequences, .prompt = kContext - 72, .warm = 40, .timed = 64});
  round.prefill = prefill_rate(job, kPrefill);
  return round;
}

int run_bench(const std::string& model, const std::string& dtype, int rounds) {
  Options options;
  options.placement.model = model;
  options.placement.dtype = dtype;
  options.placement.context = 4096;
  options.placement.max_sequences = kSequences;
  options.placement.max_batch_tokens = kPrefill;
  Job job(options);
  const auto begun = std::chrono::steady_clock::now();
  job.load([] { return false; });
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - begun;
  std::printf("{\"machine\": \"%s\", \"load_s\": %.2f}\n",
              job.topology().ranks(0).device().name().c_str(), load.count());

  const auto backend = make_backend({.device = "cuda"});
  Stopwatch watch(cuda::stream_of(*backend));
  const DeviceCopy copy(*backend);
  const ModelSpec& spec = job.model();
  const int64_t q = int64_t{spec.num_heads()} * spec.head_dim();
  Matrices matrices(*backend,
                    {.layers = spec.num_layers(),
                     .hidden = spec.hidden_size(),
                     .qkv = q + 2 * int64_t{spec.num_kv_heads()} * spec.head_dim(),
                     .attended = q,
                     .ffn = spec.ffn_size(),
                     .vocab = spec.vocab_size()},
                    kPrefill);
  Steps steps(model, dtype, *backend);
  std::map<std::string, std::vector<double>> found;
  for (int index = -1; index < rounds; ++index) {
    const double copied = copy.measure(watch);
    const Round round = measure(job);
    matrices.multiply(kPrefill, false);
    const double rate =
        matrices.operations(kPrefill) / watch.time([&] { matrices.multiply(kPrefill, false); });
    const double device = steps.device_time(watch);
    if (index < 0) continue;
    found["decode, batch 1, tokens/s"].push_back(round.batch1);
    found["decode, batch 32, tokens/s"].push_back(round.batch32);
    found["decode, batch 64 at 1024, tokens/s"].push_back(round.batch64);
    found["prefill of 2048, tokens/s"].push_back(round.prefill);
    found["copy, GB/s"].push_back(copied / 1e9);
    found["batch 1 over its roofline"].push_back(round.batch1 * step_bytes(job, 1, 88) / copied);
    found["batch 64 at 1024 over its roofline"].push_back(
        round.batch64 / kSequences * step_bytes(job, kSequences, kContext) / copied);
    found["prefill over cuBLAS's rate"].push_back(round.prefill / kPrefill *
                                                  matrices.operations(kPrefill) / rate);
    found["host's part of a step of 32, us (at most 60)"].push_back(
        (kOverheadSequences / round.batch32 - device) * 1e6);
  }
  const std::map<std::string, double> targets = {{"batch 1 over its roofline", 0.85},
                                                 {"batch 64 at 1024 over its roofline", 0.70},
                                                 {"prefill over cuBLAS's rate", 0.65}};
  for (const auto& [what, values] : found) {
    const auto target = targets.find(what);
    print_bar(spec.name() + " " + dtype + ": " + what, values,
              target == targets.end() ? 0 : target->second);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string model, dtype = "bf16";
  int rounds = 5;
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
    std::fprintf(stderr, "usage: gpu_model_bench MODEL [--dtype D] [--rounds N]\n");
    return 2;
  }
  try {
    return run_bench(model, dtype, rounds);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
