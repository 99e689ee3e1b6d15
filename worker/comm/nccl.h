// SPDX-License-Identifier: Apache-2.0
// NVIDIA's NCCL: tensors of GPUs among ranks, by the library that the machine has, opened at run
// time. One of two sources stands behind this header, as CMake picks: nccl.cc with TRIREME_CUDA,
// else nccl_unavailable.cc.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "worker/comm/communicator.h"
#include "worker/comm/nccl_ras.h"
#include "worker/comm/queued_work.h"

namespace trireme {

constexpr const char* kNcclLibrary = "libnccl.so.2";

struct NcclVersion {
  int number = 0;      // as NCCL counts: 22809 is 2.28.9; 0: not usable
  std::string reason;  // why not
};

// Opens the library. Never throws: that it is missing is an answer.
NcclVersion find_nccl(const std::string& library = kNcclLibrary);

// NCCL as one rank uses it, on the stream of its backend. Used by the worker's thread.
class Nccl {
 public:
  virtual ~Nccl() = default;

  // What names a group that is to be; its first rank makes it and gives it to the others by a way
  // of its own. It holds an address that listens.
  static constexpr size_t kKeyBytes = 128;
  virtual std::string make_key() = 0;

  // A group of world ranks, this one at index `rank`. Returns when all have joined. Throws
  // kCancelled, and kUnavailable with what NCCL says. Operations are queued on the stream, and so
  // is what follows them: a recv() has come when the backend is synchronised, which must not be
  // done before settle() has returned.
  virtual std::unique_ptr<Communicator> make_group(std::span<const int> ranks, int rank,
                                                   const std::string& key) = 0;
  virtual int version() const = 0;
};

struct NcclOptions {
  std::string library = kNcclLibrary;
  NcclRasAddress ras{};
  // A wait in a micro-batch that lasts so long is told, with what RAS says of it.
  std::chrono::milliseconds hang{10000};
};

// The backend is a CUDA backend and outlives the groups; the work is all that this rank queues on
// it. Throws kFailedPrecondition where find_nccl() gives a reason.
std::unique_ptr<Nccl> make_nccl(Backend& backend, std::shared_ptr<QueuedWork> work,
                                const NcclOptions& options = {});

}  // namespace trireme
