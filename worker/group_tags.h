// SPDX-License-Identifier: Apache-2.0
// The tags of a placement's groups: no two groups that may live at once share one.
#pragma once

#include "proto/cluster.pb.h"

namespace trireme {

// Ways of activations from the stage before `stage`: between stages of equal degree tp_rank j sends
// to tp_rank j; else the first sends to the first, which tells its group.
inline int num_edges(const ReplicaSpec& replica, int stage) {
  const int senders = replica.stages(stage - 1).shards_size();
  return senders == replica.stages(stage).shards_size() ? senders : 1;
}

// Groups of a replica: one for each stage, and one for each edge.
inline int num_tags(const ReplicaSpec& replica) {
  int count = replica.stages_size();
  for (int stage = 1; stage < replica.stages_size(); ++stage) count += num_edges(replica, stage);
  return count;
}

// The first tag that no group of the first `replicas` replicas has.
inline int tags_end(const Placement& placement, int replicas) {
  int tag = 0;
  for (int index = 0; index < replicas; ++index) tag += num_tags(placement.replicas(index));
  return tag;
}

inline int stage_tag(const Placement& placement, int replica, int stage) {
  return tags_end(placement, replica) + stage;
}

// edge: tp_rank of its two ranks.
inline int edge_tag(const Placement& placement, int replica, int stage, int edge) {
  const ReplicaSpec& spec = placement.replicas(replica);
  int tag = tags_end(placement, replica) + spec.stages_size() + edge;
  for (int before = 1; before < stage; ++before) tag += num_edges(spec, before);
  return tag;
}

}  // namespace trireme
