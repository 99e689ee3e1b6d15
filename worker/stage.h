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

class Stage {
 public:
  // Joins the stage's groups and loads its weights; progress as in load_with_node.
  // REQUIRES: check_assignment(assign) returned.
  Stage(const Assign& assign, Checkpoint& checkpoint, Backend& backend, Transport& transport,
        const LoadListener& progress);

  // Runs a micro-batch. Tokens come back on the reporter only: the first rank of the last stage.
  MicroBatchResult run(const MicroBatch& batch);
  bool reporter() const;

  // For tests: the head then computes every row, and the reporter hands each row's logits on.
  using LogitsObserver =
      std::function<void(uint64_t sequence, int32_t position, std::span<const float> logits)>;
  void observe_logits(LogitsObserver observer) { observer_ = std::move(observer); }

  uint64_t weight_bytes() const { return weights_.bytes; }
  uint64_t kv_bytes() const { return kv_->bytes(); }
  uint64_t activation_bytes() const;  // and the backend's scratch
  uint64_t communication_bytes() const { return communication_bytes_; }
  uint64_t node_bytes() const { return weights_.node_bytes; }
  TensorDigests take_digests() { return std::move(weights_.digests); }

 private:
  const StageSpec& spec() const;
  const ShardSpec& shard() const;
  void embed(Tensor x);
  void receive(Tensor x);
  int receiver() const;  // of this rank's activations, in replica_; -1: nobody
  void hand_on(Tensor x);
  // Logits of rows [first, first + count) of `rows`: on the reporter [count, vocab] fp32, else
  // null.
  const float* logits(Tensor x, const int32_t* rows, int64_t count);
  void sample(const MicroBatch& batch, Tensor x, MicroBatchResult& result);
  void report_all(const MicroBatch& batch, Tensor x);

  // Tells the rank's heartbeats.
  void begin(Operation operation) { replica_->progress().begin(operation); }

  const Assign assign_;
  Backend& backend_;
  Weights weights_;
  std::unique_ptr<Communicator> group_;    // this stage's ranks, by tp_rank
  std::unique_ptr<Communicator> replica_;  // all ranks of the replica, stage by stage
  int first_of_previous_ = 0;              // index in replica_ of the neighbours' first ranks
  int first_of_next_ = 0;
  uint64_t communication_bytes_ = 0;
  BatchTensors batch_;
  Sampler sampler_;
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
};

}  // namespace trireme
