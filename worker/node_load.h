// SPDX-License-Identifier: Apache-2.0
// A rank's weights, read together with the other ranks of its node.
#pragma once

#include <functional>

#include "proto/micro_batch.pb.h"
#include "worker/comm/communicator.h"
#include "worker/model/weights.h"

namespace trireme {

// Throws kInvalidArgument for node_ranks that are not what they must be: ranks of the placement,
// each once, this one among them.
void check_node_ranks(const Assign& assign);

// Called every few MiB; may throw to abandon the load.
using LoadListener = std::function<void(const LoadProgress&)>;

// Of the host, for a rank that has them for nothing else: those that it may use, and no more than
// its part of the node's, where all load at once.
int loading_threads(const Assign& assign);

// REQUIRES: check_node_ranks(assign) returned. Throws like load_weights and read_together.
Weights load_with_node(const Assign& assign, Checkpoint& checkpoint, Backend& backend,
                       Transport& transport, const LoadListener& listener);

}  // namespace trireme
