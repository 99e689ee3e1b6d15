// SPDX-License-Identifier: Apache-2.0
// Predicted bytes beside allocated ones, and beside the growth of this process's anonymous memory,
// as JSON lines; exits with 1 where a target is missed. Every rank of a split is a process:
//
//   tests/support/mpirun -n 1+TP*PP memory_bench --tp=TP --pp=PP [--sequences=N] CHECKPOINT…
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/rank_job.h"
#include "worker/comm/mpi.h"
#include "worker/model/checkpoint.h"
#include "worker/stage.h"

namespace {

using namespace trireme;

constexpr int kEndTag = 1000;  // above those of a replica's groups
constexpr double kKvBytes = 32 << 20;

uint64_t anonymous_bytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("RssAnon:")) return std::strtoull(line.c_str() + 8, nullptr, 10) * 1024;
  }
  return 0;
}

// Every block of the cache, every row of the activations and of the logits is written once.
std::vector<MicroBatch> fill_everything(const Placement& placement, int32_t vocab) {
  std::vector<MicroBatch> script;
  const int32_t context = placement.context();
  const int32_t blocks = (context + placement.block_size() - 1) / placement.block_size();
  MicroBatch batch;
  const auto flush = [&] {
    batch.set_id(script.size() + 1);
    if (batch.chunks_size() > 0) script.push_back(batch);
    batch.clear_chunks();
  };
  const auto add = [&](int32_t sequence, int32_t position, int32_t count, bool sample) {
    SequenceChunk& chunk = *batch.add_chunks();
    chunk.set_sequence(static_cast<uint64_t>(sequence) + 1);
    chunk.set_position(position);
    for (int32_t i = 0; i < count; ++i) chunk.add_token_ids((sequence + position + i) % vocab);
    for (int32_t i = 0; i < blocks; ++i) chunk.add_block_table(sequence * blocks + i);
    chunk.set_sample(sample);
    if (sample) chunk.mutable_draw()->set_top_p(1);
  };
  const int32_t sequences = placement.num_blocks() / blocks;
  for (int32_t sequence = 0; sequence < sequences; ++sequence) {
    for (int32_t begin = 0; begin + 1 < context; begin += placement.max_batch_tokens()) {
      add(sequence, begin, std::min(placement.max_batch_tokens(), context - 1 - begin), false);
      flush();
    }
  }
  for (int32_t sequence = 0; sequence < sequences; ++sequence) add(sequence, context - 1, 1, true);
  flush();
  return script;
}

struct Part {
  const char* name;
  uint64_t predicted, allocated;
};

bool report(const std::string& model, int rank, const std::vector<Part>& parts, uint64_t grown) {
  bool all = true;
  uint64_t total = 0;
  for (const Part& part : parts) {
    total += part.predicted;
    const double off = std::fabs(double(part.allocated) - double(part.predicted));
    const bool ok = off <= 256 << 10 || off <= 0.03 * double(part.predicted);
    all = all && ok;
    std::printf(
        "{\"bar\": \"%s, rank %d: %s allocated over predicted\", \"value\": %.4f, \"target\": "
        "\"1 within 3 %% or 256 KiB\", \"ok\": %s, \"predicted\": %llu, \"allocated\": %llu}\n",
        model.c_str(), rank, part.name,
        part.predicted > 0 ? double(part.allocated) / double(part.predicted) : 1.0,
        ok ? "true" : "false", static_cast<unsigned long long>(part.predicted),
        static_cast<unsigned long long>(part.allocated));
  }
  const double ratio = double(grown) / double(total);
  const bool ok = std::fabs(ratio - 1) <= 0.05;
  std::printf(
      "{\"bar\": \"%s, rank %d: growth of RssAnon over predicted\", \"value\": %.4f, \"target\": "
      "\"1 within 5 %%\", \"ok\": %s, \"predicted\": %llu, \"grown\": %llu}\n",
      model.c_str(), rank, ratio, ok ? "true" : "false", static_cast<unsigned long long>(total),
      static_cast<unsigned long long>(grown));
  std::fflush(stdout);
  return all && ok;
}

bool measure(MpiJob& job, const Assign& assign, const std::string& path) {
  Cancellation cancellation;
  const auto transport = job.make_transport(cancellation);
  const std::vector<MicroBatch> script =
      fill_everything(assign.placement(), assign.model().vocab_size());
  malloc_trim(0);
  const uint64_t before = anonymous_bytes();
  const auto backend = make_backend_of(assign);
  const auto checkpoint = Checkpoint::open(path);
  Stage stage(assign, *checkpoint, *backend, *transport, *transport, {});
  stage.allocate_cache(assign.placement().num_blocks());
  for (const MicroBatch& batch : script) stage.run(batch);
  malloc_trim(0);
  const uint64_t after = anonymous_bytes();
  const ShardSpec& shard =
      assign.placement().replicas(0).stages(assign.stage()).shards(assign.tp_rank());
  return report(path.substr(path.find_last_of('/') + 1), job.rank(),
                {{"weights", shard.weight_bytes(), stage.weight_bytes()},
                 {"KV cache", shard.kv_bytes(), stage.kv_bytes()},
                 {"activations and workspace", shard.activation_bytes(), stage.activation_bytes()},
                 {"communication", shard.communication_bytes(), stage.communication_bytes()}},
                after > before ? after - before : 0);
}

// Nobody leaves before the last one is done, so that a miss anywhere ends the job with status 1.
void wait_for_all(MpiJob& job) {
  Cancellation cancellation;
  const auto transport = job.make_transport(cancellation);
  std::vector<int> ranks;
  for (int rank = 0; rank < job.size(); ++rank) ranks.push_back(rank);
  float value = 0;
  transport->make_group(ranks, kEndTag)->all_reduce_sum(Tensor(&value, DType::kF32, 1, 1));
}

// As many sequences as fill about kKvBytes.
int32_t choose_sequences(RankJobOptions options) {
  options.max_sequences = 1;
  const Placement placement = make_assignments(options).front().placement();
  uint64_t least = UINT64_MAX;
  for (const StageSpec& stage : placement.replicas(0).stages()) {
    for (const ShardSpec& shard : stage.shards()) least = std::min(least, shard.kv_bytes());
  }
  return static_cast<int32_t>(
      std::clamp(kKvBytes / double(std::max<uint64_t>(least, 1)), 1.0, 500.0));
}

}  // namespace

int main(int argc, char** argv) {
  RankJobOptions options;
  options.dtype = "bf16";
  options.max_batch_tokens = 512;
  int32_t sequences = 0;
  std::vector<std::string> checkpoints;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto number = [&](const char* flag) {
      return word.starts_with(flag) ? std::atoi(word.c_str() + std::string(flag).size()) : -1;
    };
    if (number("--tp=") > 0) {
      options.tp = number("--tp=");
    } else if (number("--pp=") > 0) {
      options.pp = number("--pp=");
    } else if (number("--sequences=") > 0) {
      sequences = number("--sequences=");
    } else {
      checkpoints.push_back(word);
    }
  }
  MpiJob job;
  bool ok = !checkpoints.empty() && job.size() == 1 + options.tp * options.pp;
  if (!ok) std::fprintf(stderr, "needed are 1 + tp x pp ranks and a checkpoint\n");
  for (const std::string& path : checkpoints) {
    options.model_path = path;
    options.max_sequences = sequences > 0 ? sequences : choose_sequences(options);
    const std::vector<Assign> assigns = make_assignments(options);
    if (job.rank() == 0 || job.size() != 1 + options.tp * options.pp) continue;
    ok = measure(job, assigns[static_cast<size_t>(job.rank()) - 1], path) && ok;
  }
  if (!ok) job.abort(1);
  wait_for_all(job);
  return 0;
}
