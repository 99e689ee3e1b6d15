// SPDX-License-Identifier: Apache-2.0
// A checkpoint: named tensors in one of the formats listed in checkpoint.cc. Files are mapped, so
// only what is read is touched. Immutable after open() but for the counter; used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace trireme {

struct TensorInfo {
  std::string name;
  std::string type;            // as the format names it: "BF16", "Q4_1"
  std::vector<int64_t> shape;  // row-major; a vector counts as [1, n]; more than two: unreadable
  uint64_t bytes = 0;          // stored

  int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
  int64_t cols() const { return shape.back(); }
};

// Bytes of the file that reading so many rows and columns counts for: whole rows of a matrix, the
// values themselves of a vector.
uint64_t bytes_touched(const TensorInfo& tensor, int64_t rows, int64_t cols);

class Checkpoint {
 public:
  // path: an HF directory (config.json with model.safetensors, or shards and their index) or a
  // .gguf file. Throws kNotFound or kInvalidArgument; kFailedPrecondition for a directory with
  // pickle .bin weights only, saying how to convert them.
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  virtual ~Checkpoint() = default;

  // Null if the checkpoint has no such tensor.
  virtual const TensorInfo* find(const std::string& name) const = 0;

  // Converts [row, row + out.rows) x [col, col + out.cols) to out.dtype (fp32, bf16, fp16).
  // REQUIRES: tensor is this checkpoint's own, from find(), and the range lies inside it. Throws
  // kInvalidArgument for a type we cannot read.
  void read(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out);

  // Sum over all tensors, as stored.
  virtual uint64_t total_bytes() const = 0;
  // Bytes of the file that read() has touched so far; a column slice counts whole rows.
  uint64_t bytes_read() const { return bytes_read_; }

 protected:
  virtual void read_rows(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out) const = 0;

 private:
  uint64_t bytes_read_ = 0;
};

}  // namespace trireme
