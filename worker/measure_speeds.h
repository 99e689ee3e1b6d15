// SPDX-License-Identifier: Apache-2.0
// What a device reaches, and what an all-reduce costs among devices of its node: measured with the
// kernels and the transport that will serve. Used by the worker's thread.
#pragma once

#include "proto/preflight.pb.h"
#include "worker/comm/cancellation.h"
#include "worker/comm/communicator.h"

namespace trireme {

// Takes some tenths of a second. Throws kInvalidArgument for a task that cannot be,
// kDeadlineExceeded for a group that falls silent, kCancelled as any wait.
SpeedReport measure_speeds(const SpeedTask& task, int rank, Transport& transport,
                           Cancellation& cancellation);

// A row of the table: what the group, all of which call it, needs by bytes.
AllReduceRow measure_all_reduce(Communicator& group);

}  // namespace trireme
