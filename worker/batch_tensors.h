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

  // The cache has so many blocks; the placement's until then.
  void set_num_blocks(int32_t num_blocks) { num_blocks_ = num_blocks; }

  // Checks and uploads. Throws kInvalidArgument naming the field. The view and rows are valid until
  // the next call. pad: a step of decode, where each chunk is one token that is sampled, gets rows
  // of no sequence, which are kept nowhere, up to one of few sizes.
  void load(const MicroBatch& batch, bool pad = false);

  // At most so many rows a step of decode of `sequences` is padded to.
  static int64_t padded_rows(int32_t sequences);

  const BatchView& view() const { return view_; }
  // What is not padding.
  int32_t num_tokens() const { return num_tokens_; }
  int32_t num_samples() const { return num_samples_; }
  // Index in the micro-batch of the last token of each chunk that samples, then padding; on the
  // device, and how many.
  const int32_t* sample_rows() const { return sample_rows_; }
  int32_t num_sample_rows() const { return num_sample_rows_; }
  // Where it was padded: equal for equal sizes and places of all that view() and sample_rows()
  // tell; else 0.
  uint64_t key() const { return key_; }
  uint64_t bytes() const { return storage_.bytes(); }

 private:
  void check(const MicroBatch& batch) const;
  void pad();
  void place();
  void write(const MicroBatch& batch);
  void write_sample_rows(const MicroBatch& batch);

  Backend& backend_;
  int32_t vocab_size_;
  int32_t num_blocks_;
  int32_t block_size_;
  int32_t max_tokens_;
  int32_t max_sequences_;
  int32_t max_blocks_;
  int32_t context_;

  // All arrays, one behind the other, here and on the device.
  std::vector<int32_t> host_;
  Buffer storage_;
  BatchView view_;
  const int32_t* sample_rows_ = nullptr;
  int32_t num_tokens_ = 0;
  int32_t num_samples_ = 0;
  int32_t num_sample_rows_ = 0;
  uint64_t key_ = 0;
};

}  // namespace trireme
