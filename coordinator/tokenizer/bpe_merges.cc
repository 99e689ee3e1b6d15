// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/bpe_merges.h"

#include <algorithm>
#include <functional>

namespace trireme {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void BpeMerges::add(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  merges_[pair_key(left, right)] = {rank, merged};
}

void BpeMerges::offer(const std::vector<Symbol>& word, int32_t at, Candidates& candidates) const {
  if (at < 0 || word[at].next < 0) return;
  const int32_t left = word[at].id;
  const int32_t right = word[word[at].next].id;
  const auto found = merges_.find(pair_key(left, right));
  if (found == merges_.end()) return;
  const uint64_t order = uint64_t{found->second.rank} << 32 | static_cast<uint32_t>(at);
  candidates.push_back({order, left, right, found->second.merged});
  std::push_heap(candidates.begin(), candidates.end(), std::greater<>());
}

// Each merge removes a symbol and offers at most two new pairs.
void BpeMerges::apply(const std::vector<int32_t>& letters, std::vector<int32_t>& ids) const {
  if (letters.size() < 2) {
    ids.insert(ids.end(), letters.begin(), letters.end());
    return;
  }
  const auto count = static_cast<int32_t>(letters.size());
  std::vector<Symbol> word(letters.size());
  for (int32_t at = 0; at < count; ++at) word[at] = {letters[at], at - 1, at + 1};
  word.back().next = -1;
  Candidates candidates;
  for (int32_t at = 0; at + 1 < count; ++at) offer(word, at, candidates);
  while (!candidates.empty()) {
    std::pop_heap(candidates.begin(), candidates.end(), std::greater<>());
    const Candidate best = candidates.back();
    candidates.pop_back();
    const auto at = static_cast<int32_t>(best.order & UINT32_MAX);
    Symbol& left = word[at];
    // The pair that was offered may have been merged with a neighbour meanwhile.
    if (left.id != best.left || left.next < 0 || word[left.next].id != best.right) continue;
    Symbol& right = word[left.next];
    left.id = best.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) word[left.next].previous = at;
    offer(word, left.previous, candidates);
    offer(word, at, candidates);
  }
  for (int32_t at = 0; at >= 0; at = word[at].next) ids.push_back(word[at].id);
}

}  // namespace trireme
