// SPDX-License-Identifier: Apache-2.0
#include "launch/kv_agreement.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/printable.h"
#include "topology/placement.h"
#include "topology/topology.h"
#include "topology/worker_names.h"

namespace trireme {

// Fills `ranks` with all of the replica.
int KvAgreement::replica_of(int rank, std::vector<int>& ranks) const {
  for (int replica = 0; replica < placement_.replicas_size(); ++replica) {
    ranks = ranks_of(placement_.replicas(replica));
    if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) return replica;
  }
  throw Error(Code::kInvalidArgument, "cannot load: rank " + std::to_string(rank) +
                                          " speaks of a KV cache and has no part");
}

std::string KvAgreement::describe(int rank, const KvRoom& room) const {
  const RankInfo& info = topology_.ranks(worker_of(topology_, rank));
  std::string text =
      "rank " + std::to_string(rank) + " (" + info.host() + ", " + printable(info.device().name());
  if (!info.device().pci_id().empty()) text += " " + printable(info.device().pci_id());
  text += ") has " + format_bytes(room.free_bytes());
  if (info.device().memory_bytes() > 0) {
    text += " of its " + format_bytes(info.device().memory_bytes());
  }
  text += " free after the load, of which " + format_bytes(room.kept_bytes()) +
          " are kept for libraries and recorded steps, and a block takes " +
          format_bytes(room.block_bytes());
  if (!room.others().empty()) {
    text += "; others use that GPU: " + printable(room.others()).substr(0, 400);
  }
  return text;
}

void KvAgreement::refuse(int rank, const KvRoom& room, int64_t needed) const {
  const int64_t held = int64_t{room.num_blocks()} * placement_.block_size();
  std::string todo = room.others().empty() ? "; use" : "; end what else runs there, use";
  todo += " more ranks, or give this one fewer layers";
  if (held > 0) todo += ", or --context " + std::to_string(held);
  throw Error(Code::kResourceExhausted,
              "cannot load: one sequence of " + std::to_string(placement_.context()) +
                  " positions needs " + std::to_string(needed) + " KV blocks, there is room for " +
                  std::to_string(room.num_blocks()) + ": " + describe(rank, room) + todo);
}

std::optional<KvAgreement::Decision> KvAgreement::take(int rank, const KvRoom& room) {
  Decision decision;
  decision.replica = replica_of(rank, decision.ranks);
  const int32_t planned = num_blocks_of(placement_, decision.replica);
  if (room.num_blocks() < 0 || room.num_blocks() > planned || !rooms_.emplace(rank, room).second) {
    throw Error(Code::kInvalidArgument, "cannot load: rank " + std::to_string(rank) +
                                            " says that it has room for " +
                                            std::to_string(room.num_blocks()) +
                                            " KV blocks, planned are " + std::to_string(planned));
  }
  int fewest = decision.ranks.front();
  for (const int other : decision.ranks) {
    if (!rooms_.contains(other)) return std::nullopt;
    if (rooms_.at(other).num_blocks() < rooms_.at(fewest).num_blocks()) fewest = other;
  }
  const KvRoom& least = rooms_.at(fewest);
  const int64_t needed =
      (int64_t{placement_.context()} + placement_.block_size() - 1) / placement_.block_size();
  // A placement of one's own may plan for less than its context.
  if (least.num_blocks() < std::min<int64_t>(needed, planned)) refuse(fewest, least, needed);
  decision.num_blocks = least.num_blocks();
  if (decision.num_blocks < planned) {
    const auto positions = [&](int32_t blocks) {
      return std::to_string(int64_t{blocks} * placement_.block_size());
    };
    decision.why = "replica " + std::to_string(decision.replica) + " has " +
                   std::to_string(decision.num_blocks) + " KV blocks in place of the planned " +
                   std::to_string(planned) + " (" + positions(decision.num_blocks) +
                   " positions in place of " + positions(planned) + "): " + describe(fewest, least);
  }
  return decision;
}

}  // namespace trireme
