// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process: tensors through mailboxes, messages through queues. The
// transport of a laptop and of the tests.
#pragma once

#include <memory>
#include <vector>

#include "worker/comm/channel.h"
#include "worker/comm/communicator.h"

namespace trireme {

// Everything that local ranks share. Thread-safe; outlives its transports and channels.
class LocalHub;
std::shared_ptr<LocalHub> make_local_hub(int num_workers);  // workers have ranks 1..num_workers

std::unique_ptr<Channel> make_local_channel(std::shared_ptr<LocalHub> hub);
// Destroying it, or the thread's failure, is seen by the coordinator as kClosed.
std::unique_ptr<WorkerChannel> make_local_worker_channel(std::shared_ptr<LocalHub> hub, int rank);
std::unique_ptr<Transport> make_local_transport(
    std::shared_ptr<LocalHub> hub, int rank, Cancellation& cancellation,
    std::shared_ptr<Progress> progress = std::make_shared<Progress>());

}  // namespace trireme
