// SPDX-License-Identifier: Apache-2.0
// Sums over GPUs of one machine that reach each other's memory: the memory and its ways between
// ranks, which are processes or threads. One of two sources stands behind this header, as CMake
// picks: peer_sum.cc with TRIREME_CUDA, else unavailable.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace trireme {

// What other ranks need to reach a rank's memory, as bytes that travel. It may come from anywhere:
// open() checks it. All zeros: there is nothing to reach.
constexpr size_t kPeerCardBytes = 256;
using PeerCard = std::array<std::byte, kPeerCardBytes>;

// One rank's part in the sums of a group. Used by the worker's thread.
class PeerSum {
 public:
  virtual ~PeerSum() = default;

  virtual PeerCard card() const = 0;
  // Reaches the memory of all; cards in rank order, this rank's own among them. Throws
  // kFailedPrecondition saying whose cannot be reached, and why.
  virtual void open(std::span<const PeerCard> cards) = 0;
  // Undoes that, where no sum was queued or all have ended. When all ranks have done so each may go
  // and free its memory; whoever goes without leaves it to the process's end.
  virtual void close() = 0;

  // x = Σ over ranks of x, as kernels/cuda/kernels.h says of both ways; queued on the backend's
  // stream, and may be recorded. x fp32, bf16 or fp16, contiguous. All ranks call the same.
  // REQUIRES: open() has returned in every rank.
  enum class Way { kAtOnce, kInParts };
  virtual void sum(Tensor x, Way way) = 0;

  // From now on no sum waits for a peer: those that wait return, with anything in x. Any thread.
  virtual void give_up() = 0;

  virtual uint64_t bytes() const = 0;  // of the GPU's memory
};

// For a group of `size` ranks, 2 to kMostPeers. The backend is a CUDA backend and outlives it.
// first: number of the first sum, alike in all ranks; for tests. Throws kFailedPrecondition in a
// build without CUDA.
std::unique_ptr<PeerSum> make_peer_sum(Backend& backend, int rank, int size, uint64_t first = 1);

}  // namespace trireme
