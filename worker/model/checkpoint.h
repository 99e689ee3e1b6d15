// SPDX-License-Identifier: Apache-2.0
// A checkpoint: named tensors in one of the formats listed in checkpoint.cc. Immutable after open()
// but for the counter; used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/team.h"
#include "kernels/tensor.h"

namespace trireme {

struct TensorInfo {
  std::string name;
  std::string type;            // as the format names it: "BF16", "Q4_1"
  std::vector<int64_t> shape;  // row-major; a vector counts as [1, n]; more than two: unreadable
  uint64_t bytes = 0;          // stored

  int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
  int64_t cols() const { return shape.back(); }
  // What is read as a whole: a row of a matrix, a value of a vector; a vector of blocks altogether.
  int64_t units() const;
  uint64_t unit_bytes() const { return units() == 0 ? 0 : bytes / static_cast<uint64_t>(units()); }
};

// Bytes of the file that reading so many rows and columns counts for.
uint64_t bytes_touched(const TensorInfo& tensor, int64_t rows, int64_t cols);

// Rows of a tensor in memory, as they are stored, from column `col` on.
struct StoredRows {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes from one row to the next
  int64_t col = 0;
};

class Checkpoint {
 public:
  // path: an HF directory (config.json with model.safetensors, or shards and their index) or a
  // .gguf file. Throws kNotFound or kInvalidArgument; kFailedPrecondition for a directory with
  // pickle .bin weights only, saying how to convert them.
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  virtual ~Checkpoint() = default;

  // Null if the checkpoint has no such tensor.
  virtual const TensorInfo* find(const std::string& name) const = 0;
  // All, in the order of their files' names and of their places there. The same on every node.
  virtual std::vector<const TensorInfo*> tensors() const = 0;
  // Where it is stored.
  virtual const std::string& file_of(const TensorInfo& tensor) const = 0;
  // Sum over all tensors, as stored.
  virtual uint64_t total_bytes() const = 0;

  // REQUIRES of all that follow: tensor is this checkpoint's own, from find() or tensors(), and
  // ranges lie inside it.

  // Throws kInvalidArgument for a type we cannot read.
  void require_readable(const TensorInfo& tensor) const;
  // The stored bytes of `tensor` from `offset` on, from the file system.
  void fetch(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out);
  // The same by several threads.
  void fetch(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out, Team& team);
  // A hint: these will be fetched soon.
  virtual void will_fetch(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) const = 0;
  // Converts [row, row + out.rows) x [col, col + out.cols), whose stored rows are `stored`, to
  // out.dtype (fp32, bf16, fp16). Throws kInvalidArgument like require_readable, and for values
  // that are not finite.
  void convert(const TensorInfo& tensor, int64_t row, StoredRows stored, int64_t col,
               Tensor out) const;
  // Both at once.
  void read(const TensorInfo& tensor, int64_t row, int64_t col, Tensor out);

  // Bytes that were fetched so far.
  uint64_t bytes_read() const { return bytes_read_; }

 protected:
  virtual void fetch_bytes(const TensorInfo& tensor, uint64_t offset,
                           std::span<std::byte> out) const = 0;

 private:
  uint64_t bytes_read_ = 0;
};

}  // namespace trireme
