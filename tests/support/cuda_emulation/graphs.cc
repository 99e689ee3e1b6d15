// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda_emulation/graphs.h"

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/cuda_emulation/memory.h"

namespace trireme::cuda::emulation {
namespace {

struct Graph {
  std::vector<std::function<void()>> works;
  std::vector<std::shared_ptr<void>> objects;
};

class EmulatedStream;
thread_local EmulatedStream* recorded_here = nullptr;
std::atomic<int64_t> replays{0};

class EmulatedStream final : public Stream {
 public:
  ~EmulatedStream() override {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
  }

  void perform(std::function<void()> work) override {
    if (graph_ != nullptr) {
      graph_->works.push_back(std::move(work));
      return;
    }
    wait();
    work();
  }
  bool recorded() const override { return graph_ != nullptr; }
  void keep(std::shared_ptr<void> object) override { graph_->objects.push_back(std::move(object)); }
  bool busy() const override {
    const std::lock_guard lock(mutex_);
    return running_ != nullptr;
  }

  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return running_ == nullptr; });
  }

  void launch(std::shared_ptr<const Graph> graph) {
    wait();
    {
      const std::lock_guard lock(mutex_);
      running_ = std::move(graph);
      device_ = chosen_device();
      if (!thread_.joinable()) thread_ = std::jthread([this] { run(); });
    }
    changed_.notify_all();
  }

  cudaError_t begin() {
    if (graph_ != nullptr || recorded_here != nullptr) return cudaErrorIllegalState;
    recorded_here = this;
    graph_ = std::make_unique<Graph>();
    spoiled_ = false;
    return cudaSuccess;
  }
  cudaError_t end(Graph** graph) {
    *graph = nullptr;
    if (graph_ == nullptr) return cudaErrorIllegalState;
    if (recorded_here != this) return cudaErrorStreamCaptureWrongThread;
    recorded_here = nullptr;
    std::unique_ptr<Graph> made = std::move(graph_);
    if (spoiled_) return cudaErrorStreamCaptureInvalidated;
    *graph = made.release();
    return cudaSuccess;
  }
  void spoil() { spoiled_ = true; }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ended_ || running_ != nullptr; });
      if (running_ == nullptr) return;
      std::shared_ptr<const Graph> graph = running_;
      choose_device(device_);
      lock.unlock();
      for (const auto& work : graph->works) work();
      graph.reset();
      lock.lock();
      running_.reset();
      changed_.notify_all();
    }
  }

  std::unique_ptr<Graph> graph_;  // that is recorded
  bool spoiled_ = false;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::shared_ptr<const Graph> running_;
  int device_ = 0;
  bool ended_ = false;
  std::jthread thread_;  // made when it is needed first
};

// All streams, and who made each.
struct Streams {
  std::mutex mutex;
  std::map<EmulatedStream*, std::thread::id> makers;
};
Streams& streams() {
  static auto* const instance = new Streams;
  return *instance;
}

EmulatedStream* stream_of(cudaStream_t stream) { return reinterpret_cast<EmulatedStream*>(stream); }
Graph* graph_of(cudaGraph_t graph) { return reinterpret_cast<Graph*>(graph); }
// That runs may outlive what was made of it.
auto* executable_of(cudaGraphExec_t graph) {
  return reinterpret_cast<std::shared_ptr<const Graph>*>(graph);
}

}  // namespace

void perform(cudaStream_t stream, std::function<void()> work) {
  if (stream == nullptr) return work();
  stream_of(stream)->perform(std::move(work));
}

void wait_for_stream(cudaStream_t stream) {
  if (stream != nullptr) stream_of(stream)->wait();
}

void wait_for_own_streams() {
  std::vector<EmulatedStream*> own;
  {
    const std::lock_guard lock(streams().mutex);
    for (const auto& [stream, maker] : streams().makers) {
      if (maker == std::this_thread::get_id()) own.push_back(stream);
    }
  }
  for (EmulatedStream* const stream : own) stream->wait();
}

bool spoils_recording() {
  if (recorded_here == nullptr) return false;
  recorded_here->spoil();
  return true;
}

int64_t num_replays() { return replays; }

}  // namespace trireme::cuda::emulation

namespace emulation = trireme::cuda::emulation;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  auto* const made = new emulation::EmulatedStream;
  const std::lock_guard lock(emulation::streams().mutex);
  emulation::streams().makers[made] = std::this_thread::get_id();
  *stream = reinterpret_cast<cudaStream_t>(static_cast<emulation::Stream*>(made));
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  auto* const ended = emulation::stream_of(stream);
  ended->wait();
  {
    const std::lock_guard lock(emulation::streams().mutex);
    emulation::streams().makers.erase(ended);
  }
  delete ended;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return emulation::stream_of(stream)->begin();
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return emulation::stream_of(stream)->end(reinterpret_cast<emulation::Graph**>(graph));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete emulation::graph_of(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  auto copy = std::make_shared<const emulation::Graph>(*emulation::graph_of(graph));
  *made = reinterpret_cast<cudaGraphExec_t>(
      new std::shared_ptr<const emulation::Graph>(std::move(copy)));
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  auto* const found = emulation::stream_of(stream);
  if (found->recorded()) return cudaErrorStreamCaptureUnsupported;
  ++emulation::replays;
  found->launch(*emulation::executable_of(graph));
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete emulation::executable_of(graph);
  return cudaSuccess;
}

}  // extern "C"
