// SPDX-License-Identifier: Apache-2.0
// A micro-batch as device arrays. The message comes from another process: everything in it is
// checked here, before any kernel trusts it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "proto/cluster.pb.h"
#include "proto/micro_batch.pb.h"

namespace trireme {

class BatchTensors {
 public:
  // Allocates for the placement's largest micro-batch.
  BatchTensors(Backend& backend, const ModelSpec& model, const Placement& placement);

  // Checks and uploads. Throws kInvalidArgument naming the field. The view and rows are valid until
  // the next call.
  void load(const MicroBatch& batch);

  const BatchView& view() const { return view_; }
  // Index in the micro-batch of the last token of each chunk that samples; device and host copies.
  const int32_t* sample_rows() const { return device_sample_rows_; }
  const std::vector<int32_t>& host_sample_rows() const { return host_sample_rows_; }
  uint64_t bytes() const { return storage_.bytes(); }

 private:
  void check(const MicroBatch& batch) const;
  void append(const SequenceChunk& chunk);

  Backend& backend_;
  int32_t vocab_size_;
  int32_t num_blocks_;
  int32_t block_size_;
  int32_t max_tokens_;
  int32_t max_sequences_;
  int32_t max_blocks_;
  int32_t context_;

  Buffer storage_;
  BatchView view_;
  const int32_t* device_sample_rows_ = nullptr;
  // Host side of the arrays; keep their capacity from step to step.
  std::vector<int32_t> ids_, positions_, slots_, query_begin_, contexts_, tables_,
      host_sample_rows_;
};

}  // namespace trireme
