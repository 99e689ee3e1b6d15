// SPDX-License-Identifier: Apache-2.0
// Keys of NCCL's groups on their way from a group's first rank to the others, through rank 0. Used
// by whoever polls the channel.
#pragma once

#include <set>

#include "proto/micro_batch.pb.h"
#include "worker/comm/channel.h"

namespace trireme {

// To ranks of `company` only; whoever asks for more is not one of ours: kInvalidArgument.
void relay_key(Channel& channel, int from, const GroupKey& key, const std::set<int>& company);

}  // namespace trireme
