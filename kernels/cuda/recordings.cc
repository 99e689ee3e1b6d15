// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/recordings.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/cuda/cuda_check.h"

namespace trireme::cuda {
namespace {

// Of one graph some hundred kB lie in the GPU's memory.
constexpr size_t kMostRecordings = 128;

struct FreeGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using RecordedGraph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, FreeGraph>;

RecordedGraph end_recording(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  const cudaError_t code = cudaStreamEndCapture(stream, &graph);
  RecordedGraph owned(graph);
  cuda_check(code, "record a step");
  return owned;
}

}  // namespace

Recordings::Graph Recordings::record(cudaStream_t stream, const std::function<void()>& operations) {
  // What threads of NCCL's queue on the stream is recorded too; what else they call is not refused.
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "record a step");
  recorded_ = stream;
  try {
    operations();
  } catch (...) {
    abandon();
    throw;
  }
  CHECK(recorded_.has_value(), "a step went on whose recording was dropped");
  recorded_.reset();
  const RecordedGraph recorded = end_recording(stream);
  cudaGraphExec_t graph = nullptr;
  cuda_check(cudaGraphInstantiate(&graph, recorded.get(), 0), "record a step");
  return Graph(graph);
}

// Of one that is being made nothing is kept.
void Recordings::abandon() {
  if (!recorded_) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(*std::exchange(recorded_, std::nullopt), &graph);
  RecordedGraph{graph};
}

void Recordings::drop() {
  abandon();
  of_key_.clear();
  ++drops_;
}

// In place of the one that was not used for longest where there are too many.
Recordings::Recording& Recordings::of(uint64_t key) {
  if (of_key_.size() >= kMostRecordings && !of_key_.contains(key)) {
    of_key_.erase(
        std::ranges::min_element(of_key_, {}, [](const auto& entry) { return entry.second.used; }));
  }
  Recording& recording = of_key_[key];
  recording.used = ++calls_;
  return recording;
}

void Recordings::replay(cudaStream_t stream, uint64_t key, uint64_t place,
                        const std::function<void()>& operations) {
  Recording& recording = of(key);
  if (!recording.seen || !possible_) {
    operations();
    of_key_[key].seen = true;
    return;
  }
  if (recording.graph == nullptr || recording.place != place) {
    const uint64_t drops = drops_;
    try {
      recording.graph = record(stream, operations);
    } catch (const Error& error) {
      // Whoever dropped them has ended what the operations need; `recording` is gone.
      if (drops_ != drops) {
        if (error.code() != Code::kCancelled) {
          log_warn("what follows came while a step was recorded; --enforce_eager records none");
        }
        throw;
      }
      log_warn(std::string("steps are not recorded as CUDA graphs from here on: ") + error.what());
      possible_ = false;
      cudaGetLastError();  // else the next launch would be blamed
      return operations();
    }
    recording.place = place;
  }
  cuda_check(cudaGraphLaunch(recording.graph.get(), stream), "run a recorded step");
}

}  // namespace trireme::cuda
