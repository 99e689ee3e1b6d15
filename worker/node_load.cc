// SPDX-License-Identifier: Apache-2.0
#include "worker/node_load.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "topology/probe.h"
#include "worker/group_tags.h"

namespace trireme {
namespace {

const StageSpec& stage_of(const Assign& assign) {
  return assign.placement().replicas(assign.replica()).stages(assign.stage());
}

std::map<int, ReadPlan::Member> members_by_rank(const Placement& placement) {
  std::map<int, ReadPlan::Member> members;
  for (const ReplicaSpec& replica : placement.replicas()) {
    for (const StageSpec& stage : replica.stages()) {
      for (const ShardSpec& shard : stage.shards()) members[shard.rank()] = {&stage, &shard};
    }
  }
  return members;
}

// Above the tags of all replicas, and no other node's.
int group_tag(const Placement& placement, int first_rank) {
  return tags_end(placement, placement.replicas_size()) + first_rank;
}

}  // namespace

void check_node_ranks(const Assign& assign) {
  if (assign.node_ranks().empty()) return;
  const std::map<int, ReadPlan::Member> members = members_by_rank(assign.placement());
  const std::set<int> ranks(assign.node_ranks().begin(), assign.node_ranks().end());
  const bool known =
      std::all_of(ranks.begin(), ranks.end(), [&](int rank) { return members.contains(rank); });
  const int self = stage_of(assign).shards(assign.tp_rank()).rank();
  if (known && static_cast<int>(ranks.size()) == assign.node_ranks_size() && ranks.contains(self) &&
      std::is_sorted(assign.node_ranks().begin(), assign.node_ranks().end())) {
    return;
  }
  throw Error(Code::kInvalidArgument,
              "cannot take the assignment: node_ranks must be ranks of the placement in ascending "
              "order, rank " +
                  std::to_string(self) + " among them");
}

int loading_threads(const Assign& assign) {
  const int32_t allowed = std::max(1, probe_cpu("").threads());
  const auto cores = static_cast<int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
  return std::clamp(cores / std::max(1, assign.node_ranks_size()), 1, allowed);
}

Weights load_with_node(const Assign& assign, Checkpoint& checkpoint, Backend& backend,
                       Transport& transport, const LoadListener& listener) {
  const int self = stage_of(assign).shards(assign.tp_rank()).rank();
  std::vector<int> ranks(assign.node_ranks().begin(), assign.node_ranks().end());
  if (ranks.empty()) ranks = {self};
  const std::map<int, ReadPlan::Member> by_rank = members_by_rank(assign.placement());
  std::vector<ReadPlan::Member> members;
  for (const int rank : ranks) members.push_back(by_rank.at(rank));
  const ReadPlan plan(assign.model(), std::move(members), checkpoint, assign.verify_checkpoint());
  const auto member = static_cast<int>(std::find(ranks.begin(), ranks.end(), self) - ranks.begin());

  std::unique_ptr<Communicator> group;
  if (ranks.size() > 1) {
    group = transport.make_group(ranks, group_tag(assign.placement(), ranks.front()));
  }
  LoadProgress progress;
  progress.set_bytes_total(plan.work_bytes(member));
  if (listener) listener(progress);
  Weights weights = load_weights(assign.model(), assign.placement(), plan, member, group.get(),
                                 checkpoint, backend, [&](uint64_t bytes_done) {
                                   progress.set_bytes_done(bytes_done);
                                   if (listener) listener(progress);
                                 });
  progress.set_phase(LOAD_PHASE_ALLOCATING);
  if (listener) listener(progress);
  return weights;
}

}  // namespace trireme
