// SPDX-License-Identifier: Apache-2.0
#include "coordinator/block_manager.h"

#include <string>

#include "kernels/base/check.h"

namespace trireme {

BlockManager::BlockManager(int32_t num_blocks) : num_blocks_(num_blocks) {
  CHECK(num_blocks > 0, std::to_string(num_blocks) + " KV blocks");
  owned_.resize(num_blocks, false);
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks; block-- > 0;) free_.push_back(block);
}

bool BlockManager::grow(std::vector<int32_t>& table, int32_t count) {
  const int64_t missing = int64_t{count} - static_cast<int64_t>(table.size());
  if (missing > num_free()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    const int32_t block = free_.back();
    free_.pop_back();
    owned_[block] = true;
    table.push_back(block);
  }
  return true;
}

void BlockManager::release(std::vector<int32_t>& table) {
  // Backwards, so that the same sequence, entered again, gets the same blocks in the same order.
  for (auto block = table.rbegin(); block != table.rend(); ++block) {
    CHECK(*block >= 0 && *block < num_blocks_ && owned_[*block],
          "block " + std::to_string(*block) + " is released and was not owned");
    owned_[*block] = false;
    free_.push_back(*block);
  }
  table.clear();
}

}  // namespace trireme
