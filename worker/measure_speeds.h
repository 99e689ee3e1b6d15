// SPDX-License-Identifier: Apache-2.0
// What a device reaches, and what an all-reduce costs among devices of its node: measured with the
// kernels and the transport that will serve. Used by the worker's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "kernels/backend.h"
#include "proto/preflight.pb.h"
#include "worker/comm/cancellation.h"
#include "worker/comm/communicator.h"

namespace trireme {

// The ways of tensors from and to a device.
using MakeTransport = std::function<std::unique_ptr<Transport>(Backend& device)>;

// Takes some tenths of a second. host: among ranks' host memory. Throws kInvalidArgument for a task
// that cannot be, kDeadlineExceeded for a group that falls silent, kCancelled as any wait.
SpeedReport measure_speeds(const SpeedTask& task, int rank, Transport& host,
                           const MakeTransport& make_tensors, Cancellation& cancellation);

// Of the largest matrix that a GPU is measured with: an eighth of its memory, or what others have
// left free. Throws kResourceExhausted if that is too little for the smallest.
int64_t gpu_matrix_bytes(uint64_t memory_bytes, const std::optional<DeviceMemory>& memory);

// A row of the table: what the group `tensors`, all of which call it, needs by bytes. host: of the
// same ranks.
AllReduceRow measure_all_reduce(Communicator& tensors, Communicator& host, Backend& backend);

}  // namespace trireme
