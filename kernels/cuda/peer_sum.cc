// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/peer_sum.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/kernels.h"
#include "kernels/sizes.h"

namespace trireme {
namespace {

using cuda::cuda_check;

// ---- memory that others write into ----

// Shared by the ranks of this process that reach it; the last one frees it.
struct PeerMemory {
  ~PeerMemory() {
    // To free what another process may have open is undefined, and one that died or hangs cannot be
    // asked: it is the process's until its end.
    if (!exported) cudaFree(data);
  }
  std::byte* data = nullptr;
  int device = 0;
  bool exported = false;
};

using Identity = std::array<uint64_t, 2>;

Identity random_identity() {
  std::random_device random;
  const auto word = [&] { return uint64_t{random()} << 32 | random(); };
  return {word(), word()};
}

// Of this process, so that memory of its own is found whatever the process ids of others say.
const Identity& own_process() {
  static const Identity identity = random_identity();
  return identity;
}

// Memory of this process, by identity.
class Registry {
 public:
  void add(const Identity& identity, const std::shared_ptr<PeerMemory>& memory) {
    const std::lock_guard lock(mutex_);
    std::erase_if(of_identity_, [](const auto& entry) { return entry.second.expired(); });
    of_identity_[identity] = memory;
  }
  std::shared_ptr<PeerMemory> find(const Identity& identity) {
    const std::lock_guard lock(mutex_);
    const auto found = of_identity_.find(identity);
    return found == of_identity_.end() ? nullptr : found->second.lock();
  }

 private:
  std::mutex mutex_;
  std::map<Identity, std::weak_ptr<PeerMemory>> of_identity_;  // guarded by mutex_
};

Registry& registry() {
  static auto* const instance = new Registry;  // outlives whoever frees last
  return *instance;
}

// ---- cards ----

using Text = std::array<char, 40>;

struct CardFields {
  uint32_t present = 0;
  uint32_t has_handle = 0;
  uint64_t bytes = 0;
  Text boot = {};  // of the machine's kernel: handles of another mean nothing here
  Text gpu = {};   // PCI address
  Identity process = {};
  Identity memory = {};
  cudaIpcMemHandle_t handle = {};
};
static_assert(sizeof(CardFields) <= kPeerCardBytes);

Text text_of(const std::string& from) {
  Text text = {};
  std::copy_n(from.begin(), std::min(from.size(), text.size() - 1), text.begin());
  return text;
}

CardFields fields_of(const PeerCard& card) {
  CardFields fields;
  std::memcpy(&fields, card.data(), sizeof(fields));
  fields.boot.back() = fields.gpu.back() = '\0';
  return fields;
}

std::string boot_id() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id;
}

[[noreturn]] void cannot_reach(int rank, const std::string& reason) {
  throw Error(Code::kFailedPrecondition, "cannot reach the GPU memory of the group's rank " +
                                             std::to_string(rank) + ": " + reason);
}

void check_reached(cudaError_t code, int rank) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the runtime keeps it; a later check must not find it again
  cannot_reach(rank, cudaGetErrorString(code));
}

class CudaPeerSum final : public PeerSum {
 public:
  CudaPeerSum(Backend& backend, int rank, int size, uint64_t first)
      : stream_(cuda::stream_of(backend)), memory_(std::make_shared<PeerMemory>()) {
    CHECK(size >= 2 && size <= kMostPeers && rank >= 0 && rank < size, "a group that has no peers");
    view_.rank = rank;
    view_.size = size;
    cuda_check(cudaGetDevice(&memory_->device), "find this thread's GPU");
    allocate(first);
    fill_card();
    registry().add(fields_.memory, memory_);
  }

  // Whoever drops it while kernels wait has given up before, or does so here.
  ~CudaPeerSum() override {
    if (given_up_ != nullptr) give_up();
    cudaStreamSynchronize(stream_);
    unmap();
    cudaFreeHost(given_up_);
  }

  PeerCard card() const override {
    PeerCard card = {};
    std::memcpy(card.data(), &fields_, sizeof(fields_));
    return card;
  }

  void open(std::span<const PeerCard> cards) override {
    CHECK(static_cast<int>(cards.size()) == view_.size, "a card of each rank");
    for (int r = 0; r < view_.size; ++r) {
      view_.memory[r] = r == view_.rank ? memory_->data : reach(cards[static_cast<size_t>(r)], r);
    }
    view_.given_up = given_up_;
  }

  void close() override {
    unmap();
    view_.given_up = nullptr;
    memory_->exported = false;
  }

  void sum(Tensor x, Way way) override {
    CHECK(view_.given_up != nullptr, "a sum before open()");
    CHECK(x.dtype == DType::kF32 || x.dtype == DType::kBF16 || x.dtype == DType::kF16,
          dtype_name(x.dtype));
    CHECK(x.rows <= 1 || x.stride == x.cols, "a tensor that is summed is contiguous");
    const int64_t bytes = x.rows * x.cols * element_size(x.dtype);
    CHECK(bytes >= 0 && bytes <= (way == Way::kAtOnce ? kSumAtOnceBytes : kSumPieceBytes),
          std::to_string(bytes) + " bytes");
    if (bytes == 0) return;
    way == Way::kAtOnce ? cuda::sum_at_once(stream_, view_, x)
                        : cuda::sum_in_parts(stream_, view_, x);
    cuda_check(cudaGetLastError(), "run a sum over GPUs");
  }

  void give_up() override {
    std::atomic_ref<uint64_t>(*given_up_).store(1, std::memory_order_release);
  }

  uint64_t bytes() const override { return fields_.bytes; }

 private:
  void unmap() {
    for (void* const mapped : mapped_) cudaIpcCloseMemHandle(mapped);
    mapped_.clear();
    shared_.clear();
  }

  void allocate(uint64_t first) {
    CHECK(first != 0, "0 is no sum's number");
    fields_.bytes = static_cast<uint64_t>(peer_memory_bytes(view_.size));
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, fields_.bytes), "allocate memory for sums over GPUs");
    memory_->data = static_cast<std::byte*>(data);
    cuda_check(cudaMemsetAsync(data, 0, fields_.bytes, stream_), "clear the GPU's memory");
    cuda_check(cudaMemcpyAsync(data, &first, sizeof(first), cudaMemcpyHostToDevice, stream_),
               "copy to the GPU");
    // Others may write there as soon as they have the card.
    cuda_check(cudaStreamSynchronize(stream_), "wait for the GPU");
    void* host = nullptr;
    cuda_check(cudaHostAlloc(&host, sizeof(uint64_t), cudaHostAllocMapped | cudaHostAllocPortable),
               "allocate pinned memory");
    given_up_ = static_cast<uint64_t*>(host);
    *given_up_ = 0;
  }

  void fill_card() {
    fields_.present = 1;
    fields_.boot = text_of(boot_id());
    std::array<char, 32> pci_id{};
    cuda_check(
        cudaDeviceGetPCIBusId(pci_id.data(), static_cast<int>(pci_id.size()), memory_->device),
        "read the PCI address of a CUDA device");
    fields_.gpu = text_of(pci_id.data());
    fields_.process = own_process();
    fields_.memory = random_identity();
    // Where the machine's containers forbid it ranks of this process reach the memory all the same.
    fields_.has_handle = cudaIpcGetMemHandle(&fields_.handle, memory_->data) == cudaSuccess;
    cudaGetLastError();
  }

  std::byte* reach(const PeerCard& card, int rank) {
    const CardFields fields = fields_of(card);
    if (fields.present != 1) cannot_reach(rank, "it gives none to others");
    if (fields.bytes != fields_.bytes) {
      cannot_reach(rank, "it has " + std::to_string(fields.bytes) + " bytes, expected are " +
                             std::to_string(fields_.bytes));
    }
    if (fields.boot != fields_.boot || fields.boot.front() == '\0') {
      cannot_reach(rank, "it is on another machine");
    }
    if (fields.process == fields_.process) return reach_own(fields, rank);
    memory_->exported = memory_->exported || fields_.has_handle == 1;  // it may have opened it
    if (fields.has_handle != 1) cannot_reach(rank, "its process may not export it (CUDA IPC)");
    check_access(fields, rank);
    void* data = nullptr;
    check_reached(cudaIpcOpenMemHandle(&data, fields.handle, cudaIpcMemLazyEnablePeerAccess), rank);
    mapped_.push_back(data);
    return static_cast<std::byte*>(data);
  }

  // A GPU that this process does not see may be reached all the same.
  void check_access(const CardFields& fields, int rank) const {
    int device = 0;
    const bool seen = cudaDeviceGetByPCIBusId(&device, fields.gpu.data()) == cudaSuccess;
    cudaGetLastError();
    if (!seen || device == memory_->device) return;
    int possible = 0;
    check_reached(cudaDeviceCanAccessPeer(&possible, memory_->device, device), rank);
    if (possible == 0) cannot_reach(rank, "there is no way from this GPU to that one");
  }

  // That of another thread.
  std::byte* reach_own(const CardFields& fields, int rank) {
    std::shared_ptr<PeerMemory> memory = registry().find(fields.memory);
    if (memory == nullptr) cannot_reach(rank, "it has gone");
    // One that allocates, or loads code, would wait for the other's kernel, and that one for it.
    if (memory->device == memory_->device) cannot_reach(rank, "two ranks of a process share a GPU");
    check_access(fields, rank);
    const cudaError_t code = cudaDeviceEnablePeerAccess(memory->device, 0);
    cudaGetLastError();
    if (code != cudaErrorPeerAccessAlreadyEnabled) check_reached(code, rank);
    std::byte* const data = memory->data;
    shared_.push_back(std::move(memory));
    return data;
  }

  const cudaStream_t stream_;
  const std::shared_ptr<PeerMemory> memory_;         // own
  std::vector<std::shared_ptr<PeerMemory>> shared_;  // of other ranks of this process
  std::vector<void*> mapped_;                        // of those of others
  CardFields fields_;
  cuda::PeerView view_;
  uint64_t* given_up_ = nullptr;
};

}  // namespace

std::unique_ptr<PeerSum> make_peer_sum(Backend& backend, int rank, int size, uint64_t first) {
  return std::make_unique<CudaPeerSum>(backend, rank, size, first);
}

}  // namespace trireme
