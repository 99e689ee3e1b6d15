// SPDX-License-Identifier: Apache-2.0
// The merges of byte-pair encoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace trireme {

class BpeMerges {
 public:
  void reserve(size_t count) { merges_.reserve(count); }
  // The lower rank is merged first; of two of the same rank the one further left.
  void add(int32_t left, int32_t right, uint32_t rank, int32_t merged);
  // Merges the letters of a word and appends what is left to `ids`. O(n log n) for n letters.
  void apply(const std::vector<int32_t>& letters, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t merged;
  };
  // A word while it is merged: a list of symbols, threaded through an array.
  struct Symbol {
    int32_t id;  // -1: merged into the one before it
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    uint64_t order;  // rank, then position: the lowest is merged first
    int32_t left;
    int32_t right;
    int32_t merged;
    bool operator>(const Candidate& other) const { return order > other.order; }
  };
  // A heap, its top the lowest.
  using Candidates = std::vector<Candidate>;
  void offer(const std::vector<Symbol>& word, int32_t at, Candidates& candidates) const;

  std::unordered_map<uint64_t, Merge> merges_;
};

}  // namespace trireme
