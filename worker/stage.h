// SPDX-License-Identifier: Apache-2.0
// One rank's part of a replica brought to life: embedding? -> layers -> head and sampling?, its KV
// cache and its ways to the other ranks. One call a micro-batch. Used by the worker's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"
#include "worker/batch_tensors.h"
#include "worker/comm/communicator.h"
#include "worker/device_sampler.h"
#include "worker/history.h"
#include "worker/kv_cache.h"
#include "worker/model/checkpoint.h"
#include "worker/model/decoder.h"
#include "worker/model/weights.h"
#include "worker/node_load.h"
#include "worker/sampler.h"

namespace trireme {

// Throws kInvalidArgument for an assignment whose indices or ranges do not fit together. Everything
// else here and in the worker trusts them after that.
void check_assignment(const Assign& assign);

// The device of this rank as the assignment has it. Throws kFailedPrecondition where it is not
// there. REQUIRES: check_assignment(assign) returned.
std::unique_ptr<Backend> make_backend_of(const Assign& assign);

class Stage {
 public:
  // Joins the stage's groups and loads its weights; progress as in load_with_node.
  // REQUIRES: check_assignment(assign) returned.
  // host: among ranks' host memory, for what is read together; tensors: among devices. The KV cache
  // comes last, by allocate_cache().
  Stage(const Assign& assign, Checkpoint& checkpoint, Backend& backend, Transport& host,
        Transport& tensors, const LoadListener& progress);

  // Runs the largest micro-batches where all ranks of the stage are GPUs, which all must call it: a
  // GPU's scratch grows in them, and its libraries choose and load code, so that no step of a
  // request fails or waits for that. Stages of GPUs that follow each other pass activations on, for
  // connections take memory when they are first used. Before allocate_cache().
  void warm_up();
  // KV blocks that there is memory for by now, at most the placement's.
  KvRoom kv_room() const;
  // At most as many as kv_room() said. Before the first run().
  void allocate_cache(int32_t num_blocks);
  // After that, where warm_up() did something: steps of decode of several sizes, so that short
  // contexts find them recorded. What is recorded uses the cache where it is.
  void record_steps();

  // Runs a micro-batch. Tokens come back on the reporter only: the first rank of the last stage.
  MicroBatchResult run(const MicroBatch& batch);
  bool reporter() const;

  // For tests: the head then computes every row, and the reporter hands each row's logits on.
  using LogitsObserver =
      std::function<void(uint64_t sequence, int32_t position, std::span<const float> logits)>;
  void observe_logits(LogitsObserver observer) { observer_ = std::move(observer); }

  uint64_t weight_bytes() const { return weights_.bytes; }
  uint64_t kv_bytes() const { return kv_ ? kv_->bytes() : 0; }
  uint64_t activation_bytes() const;  // and the backend's scratch
  uint64_t communication_bytes() const { return communication_bytes_; }
  uint64_t node_bytes() const { return weights_.node_bytes; }
  TensorDigests take_digests() { return std::move(weights_.digests); }

 private:
  const StageSpec& spec() const;
  const ShardSpec& shard() const;
  void join_groups(Transport& tensors);
  void allocate_head();
  // Before the device is waited for.
  void settle();
  void embed(Tensor x);
  void receive(Tensor x);
  void hand_on(Tensor x);
  void forward(Tensor x);
  // Of steps that come again the device may keep a recording.
  bool replays(int32_t sequences) const;
  // forward() and logits() of the loaded batch.
  void compute(Tensor x);
  // Of the warm-up: sequences that together have so many tokens and end at `end`. largest: with
  // activations to and from stages of GPUs, and never recorded.
  void run_alike(int32_t sequences, int32_t tokens, int32_t end, bool largest);
  // Makes the logits of the first `count` of `rows`, which logits_of(count) then has on the
  // reporter: [count, vocab] fp32 on the device.
  void logits(Tensor x, const int32_t* rows, int64_t count);
  void own_logits(Tensor x, const int32_t* rows, int64_t count);
  void gather_logits(int64_t count);
  Tensor logits_of(int64_t count) const;
  const float* download_logits(Tensor logits);
  void sample(const MicroBatch& batch, MicroBatchResult& result);
  bool sample_on_device(const MicroBatch& batch, Tensor logits, MicroBatchResult& result);
  void report_all(const MicroBatch& batch, Tensor x);

  // Tells the rank's heartbeats.
  void begin(Operation operation) { group_->progress().begin(operation); }

  const Assign assign_;
  Backend& backend_;
  Weights weights_;
  uint64_t communication_bytes_ = 0;
  BatchTensors batch_;
  Sampler sampler_;
  DeviceSampler device_sampler_;
  Histories histories_;  // on the reporter
  std::optional<KvCache> kv_;
  std::optional<Decoder> decoder_;
  LogitsObserver observer_;

  Buffer residual_;                                     // [max_batch_tokens, H] fp32
  Buffer head_rows_, head_normed_, head_local_, head_;  // of at most max_sequences rows
  std::vector<int32_t> vocab_cols_;                     // of each tp_rank
  std::vector<float> host_logits_;
  std::vector<int32_t> every_row_;
  Buffer device_rows_;

  // These go first: memory of a GPU that still waits for a peer is not freed before the wait ends.
  std::unique_ptr<Communicator> group_;  // this stage's ranks, by tp_rank
  // Edges: of two ranks, the earlier stage's first; null where this rank has none.
  std::unique_ptr<Communicator> previous_, next_;
};

}  // namespace trireme
