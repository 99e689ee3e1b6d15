// SPDX-License-Identifier: Apache-2.0
// Emulated streams: what is queued is done at once, but for graphs, which run on a thread of the
// stream while the host goes on.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace trireme::cuda::emulation {

// What a cudaStream_t points to. Used by one thread, or by one at a time. Virtual, for the library
// that stands for NCCL's is not linked to the emulation.
class Stream {
 public:
  virtual ~Stream() = default;
  // Does it once the graph that runs has ended; or, while the stream is recorded, leaves it to the
  // graph. It must own what it needs.
  virtual void perform(std::function<void()> work) = 0;
  virtual bool recorded() const = 0;
  // Of the graph that is recorded: kept until it and what is made of it have gone, and run no more.
  virtual void keep(std::shared_ptr<void> object) = 0;
  // Whether a graph runs.
  virtual bool busy() const = 0;
};

// On the null stream it is done now.
void perform(cudaStream_t stream, std::function<void()> work);
// Until no graph runs.
void wait_for_stream(cudaStream_t stream);
// The same of all streams that this thread made.
void wait_for_own_streams();
// Whether this thread records. What calls this may not be called meanwhile: the recording is lost.
bool spoils_recording();
// How many graphs have been launched.
int64_t num_replays();

}  // namespace trireme::cuda::emulation
