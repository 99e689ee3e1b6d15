// SPDX-License-Identifier: Apache-2.0
#include "tests/support/rank_job.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <random>
#include <thread>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"
#include "topology/memory.h"
#include "topology/placement.h"
#include "topology/shard.h"
#include "worker/comm/device_transport.h"
#include "worker/comm/local.h"
#include "worker/model/dtype_map.h"
#include "worker/model/family.h"
#include "worker/stage.h"

namespace trireme {
namespace {

// Keeps the positions of one sequence in its own blocks, scattered so that a table is never the
// identity.
void fill_blocks(SequenceChunk& chunk, const Placement& placement) {
  const int32_t end = chunk.position() + chunk.token_ids_size();
  const int32_t per_sequence = placement.num_blocks() / placement.max_sequences();
  const auto owner = static_cast<int32_t>(chunk.sequence() - 1);
  for (int32_t index = 0; index * placement.block_size() < end; ++index) {
    chunk.add_block_table((index + 1) * placement.max_sequences() - 1 - owner);
  }
  if (chunk.block_table_size() > per_sequence) throw std::runtime_error("script needs more blocks");
}

struct Cursor {
  uint64_t sequence = 0;
  std::vector<int32_t> tokens;
  int32_t prompt_length = 0;
  int32_t chunk = 0;
  int32_t done = 0;

  bool ended() const { return done == static_cast<int32_t>(tokens.size()); }
  void take(MicroBatch& batch, int32_t room) {
    const int32_t left = done < prompt_length ? prompt_length - done : 1;
    const int32_t count = std::min({left, chunk > 0 ? chunk : left, room});
    SequenceChunk& part = *batch.add_chunks();
    part.set_sequence(sequence);
    part.set_position(done);
    for (int32_t index = 0; index < count; ++index) {
      part.add_token_ids(tokens[static_cast<size_t>(done + index)]);
    }
    done += count;
  }
};

}  // namespace

std::vector<MicroBatch> make_script(const ModelSpec& model, const std::vector<int32_t>& tokens,
                                    int32_t prompt_length, int32_t chunk, int32_t company) {
  std::vector<Cursor> cursors = {{1, tokens, prompt_length, chunk, 0}};
  std::mt19937 random(static_cast<uint32_t>(7 + company));
  for (int32_t index = 0; index < company; ++index) {
    Cursor other{static_cast<uint64_t>(index + 2), {}, 0, 0, 0};
    other.prompt_length = 1 + static_cast<int32_t>(random() % 12);
    other.chunk = 1 + static_cast<int32_t>(random() % 6);
    other.tokens.resize(static_cast<size_t>(other.prompt_length) + random() % 20);
    for (int32_t& id : other.tokens) {
      id = static_cast<int32_t>(random() % static_cast<uint32_t>(model.vocab_size()));
    }
    cursors.push_back(std::move(other));
  }
  std::vector<MicroBatch> script;
  while (!cursors[0].ended()) {
    MicroBatch batch;
    batch.set_id(script.size() + 1);
    // Company stands before and behind the sequence that is looked at.
    for (size_t index = cursors.size(); index-- > 0;) {
      if (index != 1 && !cursors[index].ended()) cursors[index].take(batch, 128);
    }
    if (cursors.size() > 1 && !cursors[1].ended()) cursors[1].take(batch, 128);
    script.push_back(std::move(batch));
  }
  return script;
}

std::vector<Assign> make_assignments(const RankJobOptions& options) {
  const ModelSpec model = read_model_spec(options.model_path);
  Topology topology;
  for (int rank = 1; rank <= options.tp * options.pp; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.mutable_device()->set_kind(DEVICE_KIND_CPU);
    info.mutable_device()->set_memory_bytes(uint64_t{16} << 30);
    info.mutable_device()->set_threads(options.threads);
  }
  PlacementOptions plan;
  set_dtypes(options.dtype, model, plan);
  plan.tp = options.tp;
  plan.pp = options.pp;
  plan.dp = 1;
  plan.max_sequences = options.max_sequences;
  plan.max_batch_tokens = options.max_batch_tokens;
  plan.context = std::min(512, model.context_length());
  Placement placement = plan_placement(topology, model, plan);
  for (size_t index = 0; index < options.devices.size(); ++index) {
    topology.mutable_ranks(static_cast<int>(index))
        ->mutable_device()
        ->set_kind(options.devices[index]);
  }
  set_devices(topology, placement);
  predict_bytes(model, placement);
  const auto num_gpus = static_cast<int32_t>(cuda_devices().devices.size());
  std::vector<Assign> assigns;
  for (int stage = 0; stage < options.pp; ++stage) {
    for (int tp_rank = 0; tp_rank < options.tp; ++tp_rank) {
      Assign assign;
      *assign.mutable_model() = model;
      *assign.mutable_placement() = placement;
      assign.set_stage(stage);
      assign.set_tp_rank(tp_rank);
      assign.set_logical_vocab_size(model.vocab_size());
      assign.set_threads(options.threads);
      assign.set_isa(options.isa);
      const int32_t gpu = stage * options.tp + tp_rank;
      assign.set_device_index(gpu < num_gpus ? gpu : 0);
      for (int rank = 1; rank <= options.tp * options.pp; ++rank) assign.add_node_ranks(rank);
      assigns.push_back(std::move(assign));
    }
  }
  return assigns;
}

namespace {

// What a rank allocates is what the plan predicted, byte for byte; but a GPU's scratch, which only
// grows when it is used.
void check_bytes(const Assign& assign, const Stage& stage, const Backend& backend) {
  const StageSpec& spec = assign.placement().replicas(0).stages(assign.stage());
  const ShardSpec& shard = spec.shards(assign.tp_rank());
  const auto check = [](const char* what, uint64_t predicted, uint64_t allocated) {
    if (predicted == allocated) return;
    throw std::runtime_error(std::string(what) + ": " + std::to_string(predicted) +
                             " bytes are predicted, " + std::to_string(allocated) +
                             " are allocated");
  };
  check("weights", shard.weight_bytes(), stage.weight_bytes());
  check("KV", shard.kv_bytes(), stage.kv_bytes());
  const bool gpu = shard.device() == DEVICE_KIND_CUDA;
  const int64_t scratch =
      gpu ? cuda_scratch_bytes(assign.model(), spec, shard, assign.placement()) : 0;
  check("activations", shard.activation_bytes() - static_cast<uint64_t>(scratch),
        stage.activation_bytes() - (gpu ? backend.workspace_bytes() : 0));
  // Without NCCL logits are gathered on the host, and ranks that are threads and share a GPU do not
  // sum in its memory.
  uint64_t communication = shard.communication_bytes();
  if (gpu && on_gpus(spec)) {
    const StagingBytes group = group_staging(assign.model(), assign.placement().replicas(0),
                                             assign.stage(), assign.tp_rank(), assign.placement());
    communication -= group.gathered;
    if (stage.communication_bytes() == communication - group.peers) return;
  }
  check("communication", communication, stage.communication_bytes());
}

}  // namespace

Logits run_rank(const std::string& model_path, const Assign& assign,
                const std::vector<MicroBatch>& script, Transport& transport) {
  check_assignment(assign);
  const auto backend = make_backend_of(assign);
  const auto checkpoint = Checkpoint::open(model_path);
  DeviceTransportOptions options;
  options.gpu_ranks = gpu_ranks(assign.placement());
  Cancellation never;
  options.cancellation = &never;
  options.progress = std::make_shared<Progress>();
  options.rank =
      assign.placement().replicas(0).stages(assign.stage()).shards(assign.tp_rank()).rank();
  const auto tensors = make_device_transport(transport, *backend, options);
  Stage stage(assign, *checkpoint, *backend, transport, *tensors, {});
  stage.allocate_cache(assign.placement().num_blocks());
  check_bytes(assign, stage, *backend);
  Logits logits;
  // Every rank of the last stage takes part in the head; the reporter alone is called.
  stage.observe_logits([&](uint64_t sequence, int32_t position, std::span<const float> row) {
    logits[{sequence, position}].assign(row.begin(), row.end());
  });
  for (MicroBatch batch : script) {
    for (SequenceChunk& chunk : *batch.mutable_chunks()) fill_blocks(chunk, assign.placement());
    stage.run(batch);
  }
  return logits;
}

Logits run_local(const RankJobOptions& options, const std::vector<MicroBatch>& script) {
  const std::vector<Assign> assigns = make_assignments(options);
  const auto hub = make_local_hub(static_cast<int>(assigns.size()));
  std::vector<Cancellation> cancellations(assigns.size());
  std::mutex mutex;
  Logits logits;
  std::exception_ptr first_error;
  std::vector<std::thread> threads;
  for (size_t index = 0; index < assigns.size(); ++index) {
    threads.emplace_back([&, index] {
      try {
        const auto transport =
            make_local_transport(hub, static_cast<int>(index) + 1, cancellations[index]);
        Logits mine = run_rank(options.model_path, assigns[index], script, *transport);
        const std::lock_guard lock(mutex);
        logits.merge(mine);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
        for (Cancellation& other : cancellations) other.cancel("a rank failed");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
  return logits;
}

}  // namespace trireme
