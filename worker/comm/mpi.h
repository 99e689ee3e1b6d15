// SPDX-License-Identifier: Apache-2.0
// MPI for bootstrap and for tensors between CPU ranks. After bootstrap() rank 0 makes no MPI call
// until the end.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "worker/comm/communicator.h"

namespace trireme {

// The MPI job that this process belongs to; one per process. Errors are returned, never fatal.
class MpiJob {
 public:
  MpiJob();   // MPI_Init_thread; throws kUnavailable
  ~MpiJob();  // MPI_Finalize, unless abandoned
  MpiJob(const MpiJob&) = delete;

  int rank() const;
  int size() const;
  std::string library_version() const;

  // What every rank says of itself (at most kGatherBytes), by rank, in rank 0; nothing in others.
  // Throws kDeadlineExceeded naming the ranks that said nothing in time.
  static constexpr size_t kGatherBytes = 512;
  std::vector<std::string> gather(const std::string& mine, std::chrono::milliseconds timeout);
  // Rank 0's bytes (at most 64 KiB) in every rank. Throws kDeadlineExceeded after `timeout`.
  std::string broadcast(const std::string& from_root, std::chrono::milliseconds timeout);

  std::unique_ptr<Transport> make_transport(
      Cancellation& cancellation,
      std::shared_ptr<Progress> progress = std::make_shared<Progress>());

  // After a rank died Finalize can hang: leave requests alone and let the process exit without it.
  void abandon();
  bool abandoned() const { return abandoned_; }
  // Ends the whole job with this exit status. Does not return.
  [[noreturn]] void abort(int status);

 private:
  bool abandoned_ = false;
};

}  // namespace trireme
