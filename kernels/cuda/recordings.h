// SPDX-License-Identifier: Apache-2.0
// Steps that were queued before, as CUDA graphs: a launch of one costs the host some microseconds,
// whatever the number of its kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

namespace trireme::cuda {

// Owned and used by the backend, on its thread.
class Recordings {
 public:
  // Queues what `operations` queues on the stream. Under a key it runs them as they are the first
  // time, so that scratch grows and algorithms are chosen; records them the second time; and
  // replays that from then on. `place` tells whether memory that they use is where it was when they
  // were recorded: if not they are recorded anew. Where CUDA cannot record them it says so once,
  // and all run as they are from then on. Throws what they throw. REQUIRES: the stream has done
  // what was replayed some dozens of keys ago.
  void replay(cudaStream_t stream, uint64_t key, uint64_t place,
              const std::function<void()>& operations);

  // Forgets all of them. One that runs is freed by CUDA when it has ended. One that is being made
  // ends here, on the thread that began it, and its replay() throws what its operations throw.
  void drop();

 private:
  struct Free {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Free>;
  struct Recording {
    bool seen = false;
    uint64_t place = 0;
    uint64_t used = 0;  // when, in calls of replay()
    Graph graph;
  };

  Graph record(cudaStream_t stream, const std::function<void()>& operations);
  void abandon();
  Recording& of(uint64_t key);

  std::map<uint64_t, Recording> of_key_;
  std::optional<cudaStream_t> recorded_;  // that of the one that is being made
  uint64_t calls_ = 0;
  uint64_t drops_ = 0;
  bool possible_ = true;
};

}  // namespace trireme::cuda
