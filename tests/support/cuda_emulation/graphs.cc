// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda_emulation/graphs.h"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

namespace trireme::cuda::emulation {
namespace {

using Works = std::vector<std::function<void()>>;
thread_local Works* recorded = nullptr;

}  // namespace

void perform(std::function<void()> work) {
  if (recorded != nullptr) {
    recorded->push_back(std::move(work));
  } else {
    work();
  }
}

bool recording() { return recorded != nullptr; }

}  // namespace trireme::cuda::emulation

namespace emulation = trireme::cuda::emulation;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (emulation::recorded != nullptr) return cudaErrorIllegalState;
  emulation::recorded = new emulation::Works;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(std::exchange(emulation::recorded, nullptr));
  return *graph == nullptr ? cudaErrorIllegalState : cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<emulation::Works*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = reinterpret_cast<cudaGraphExec_t>(
      new emulation::Works(*reinterpret_cast<emulation::Works*>(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const auto& work : *reinterpret_cast<emulation::Works*>(graph)) emulation::perform(work);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete reinterpret_cast<emulation::Works*>(graph);
  return cudaSuccess;
}

}  // extern "C"
