// SPDX-License-Identifier: Apache-2.0
// Who owns which KV block. Block b means the same slots on every rank of the replica, so one
// manager serves the whole pipeline. Part of the scheduler's pure state: no clock, thread or I/O.
#pragma once

#include <cstdint>
#include <vector>

namespace trireme {

class BlockManager {
 public:
  explicit BlockManager(int32_t num_blocks);

  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_blocks() const { return num_blocks_; }

  // Grows `table` to `count` blocks, or leaves it if it has them. False, with nothing changed, if
  // too few are free.
  bool grow(std::vector<int32_t>& table, int32_t count);
  // Gives every block of the table back and clears it.
  void release(std::vector<int32_t>& table);

 private:
  int32_t num_blocks_;
  std::vector<int32_t> free_;  // a stack: the block freed last is warm and goes out first
  std::vector<bool> owned_;    // for CHECKs: a block is owned once or free
};

}  // namespace trireme
