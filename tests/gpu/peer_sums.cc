// SPDX-License-Identifier: Apache-2.0
// Sums over GPUs that reach each other's memory, each rank a process: on one GPU that all share as
// well as on many. Checks every type and way, sums in a row, recordings and an end without a peer;
// then prints what sums take, at once, in parts and by NCCL, as JSON lines. Built on the emulated
// runtime too, where it checks alone.
//
//   peer_sums [--ranks N] [--largest 0|1] [--rounds N]
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/brief_wait.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/bars.h"
#include "tests/support/peer_sum_cases.h"
#include "worker/comm/nccl.h"
#include "worker/comm/queued_work.h"

namespace {

using namespace trireme;
using std::chrono::steady_clock;

constexpr int kMostRanks = 8;
constexpr std::chrono::seconds kPatience{200};

// What the processes share.
struct Table {
  std::atomic<int> come{0};
  std::atomic<int> failed{0};
  PeerCard cards[kMostRanks];
  double seconds[kMostRanks];
  char key[Nccl::kKeyBytes];
};

class Rank {
 public:
  Rank(Table& table, int rank, int size) : table_(table), rank_(rank), size_(size) {}

  int run(bool largest, int rounds) {
    const auto num_gpus = static_cast<int>(cuda_devices().devices.size());
    backend_ =
        make_backend({.device = "cuda", .device_index = num_gpus > 0 ? rank_ % num_gpus : 0});
    work_ = std::make_shared<QueuedWork>(*backend_, cancellation_, std::make_shared<Progress>());
    peers_ = make_peer_sum(*backend_, rank_, size_);
    table_.cards[rank_] = peers_->card();
    meet();
    peers_->open({table_.cards, static_cast<size_t>(size_)});
    meet();
    check_cases(largest);
    check_many();
    check_recordings();
    if (rounds > 0) time_all(rounds);
    check_end();
    if (rank_ == 0) std::printf("%d ranks on %d GPUs: all sums are right\n", size_, num_gpus);
    meet();
    return 0;
  }

 private:
  // Until all ranks are here.
  void meet() {
    const int target = (++meetings_) * size_;
    ++table_.come;
    const auto deadline = steady_clock::now() + kPatience;
    for (BriefWait brief; table_.come < target; brief.pause()) {
      if (table_.failed > 0) throw Error(Code::kUnavailable, "another rank failed");
      if (steady_clock::now() > deadline) throw Error(Code::kDeadlineExceeded, "a rank is missing");
    }
  }

  void check(const std::string& wrong) const {
    if (!wrong.empty()) throw Error(Code::kInternal, wrong);
  }

  void check_cases(bool largest) {
    uint64_t seed = 0;
    for (const PeerSumCase& param : peer_sum_cases(largest)) {
      check(check_peer_sum(*peers_, *backend_, rank_, size_, param, ++seed));
    }
  }

  void check_many() {
    for (uint64_t seed = 0; seed < 200; ++seed) {
      check(check_peer_sum(*peers_, *backend_, rank_, size_, mixed_peer_sum(seed), seed));
    }
  }

  // Many layers' sums a step, as in a model's graph.
  void check_recordings() {
    constexpr int64_t kCount = 4096;
    const Buffer buffer = backend_->allocate(kCount * sizeof(float));
    const Tensor x(buffer.data(), DType::kF32, 1, kCount);
    const auto step = [&] {
      for (int layer = 0; layer < 6; ++layer) {
        peers_->sum(x, layer % 2 == 0 ? PeerSum::Way::kAtOnce : PeerSum::Way::kInParts);
        backend_->scale(x, 1.0f / static_cast<float>(size_));
      }
    };
    for (int i = 0; i < 8; ++i) {
      std::vector<float> values(kCount, static_cast<float>(i + 1));
      backend_->upload(buffer.data(), values.data(), buffer.bytes());
      backend_->replay(5, step);
      backend_->synchronize();
      backend_->download(values.data(), buffer.data(), buffer.bytes());
      for (const float value : values) {
        if (std::abs(value - static_cast<float>(i + 1)) > 1e-4f * static_cast<float>(i + 1)) {
          throw Error(Code::kInternal, "a recorded step gave " + std::to_string(value));
        }
      }
    }
  }

  // Rank 0 sums without the others, which is the last that these do.
  void check_end() {
    meet();
    if (rank_ != 0) return meet();
    const Buffer buffer = backend_->allocate(4096 * sizeof(float));
    steady_clock::time_point told;
    std::jthread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      told = steady_clock::now();
      peers_->give_up();
    });
    peers_->sum({buffer.data(), DType::kF32, 1, 4096}, PeerSum::Way::kAtOnce);
    backend_->synchronize();
    const auto ended = steady_clock::now();
    other.join();
    if (ended < told) throw Error(Code::kInternal, "a sum ended without the other ranks");
    std::printf("{\"bar\": \"end of a sum without its peers, ms\", \"value\": %.2f}\n",
                std::chrono::duration<double>(ended - told).count() * 1e3);
    meet();
  }

  // ---- times ----

  // Of one of many sums in a row; of the slowest rank.
  double seconds_of(const std::function<void()>& queue, const std::function<void()>& wait) {
    constexpr int kCalls = 50;
    meet();
    const auto begin = steady_clock::now();
    for (int i = 0; i < kCalls; ++i) queue();
    wait();
    table_.seconds[rank_] = std::chrono::duration<double>(steady_clock::now() - begin).count();
    meet();
    const double slowest = *std::max_element(table_.seconds, table_.seconds + size_);
    meet();
    return slowest / kCalls;
  }

  // NCCL refuses ranks that share a GPU.
  std::unique_ptr<Communicator> join_nccl() {
    try {
      nccl_ = make_nccl(*backend_, work_);
      if (rank_ == 0) {
        const std::string key = nccl_->make_key();
        std::memcpy(table_.key, key.data(), key.size());
      }
      meet();
      std::vector<int> ranks;
      for (int r = 0; r < size_; ++r) ranks.push_back(r);
      cancellation_.set_deadline(steady_clock::now() + std::chrono::seconds(30));
      auto group = nccl_->make_group(ranks, rank_, {table_.key, sizeof table_.key});
      cancellation_.no_deadline();
      return group;
    } catch (const Error& error) {
      cancellation_.no_deadline();
      if (rank_ == 0) std::printf("without NCCL: %s\n", error.what());
      return nullptr;
    }
  }

  void time_all(int rounds) {
    const auto group = join_nccl();
    const auto settle = [&] { backend_->synchronize(); };
    for (const int64_t kib : {8, 16, 32, 64, 128, 256, 512, 1024, 2048}) {
      const Buffer buffer = backend_->allocate(static_cast<size_t>(kib << 10));
      const Tensor x(buffer.data(), DType::kF32, 1, kib << 8);
      std::vector<double> at_once, in_parts, by_nccl;
      for (int round = 0; round < rounds; ++round) {
        if (kib <= 256) {
          at_once.push_back(seconds_of([&] { peers_->sum(x, PeerSum::Way::kAtOnce); }, settle) *
                            1e6);
        }
        in_parts.push_back(seconds_of([&] { peers_->sum(x, PeerSum::Way::kInParts); }, settle) *
                           1e6);
        if (group == nullptr) continue;
        by_nccl.push_back(seconds_of([&] { group->all_reduce_sum(x); }, [&] { group->settle(); }) *
                          1e6);
      }
      if (rank_ != 0) continue;
      const std::string of = "us of a sum of " + std::to_string(kib) + " KiB over " +
                             std::to_string(size_) + " ranks, ";
      if (!at_once.empty()) print_bar(of + "at once", at_once, 0);
      print_bar(of + "in parts", in_parts, 0);
      if (!by_nccl.empty()) print_bar(of + "by NCCL", by_nccl, 0);
    }
  }

  Table& table_;
  const int rank_;
  const int size_;
  int meetings_ = 0;
  Cancellation cancellation_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<PeerSum> peers_;
  std::shared_ptr<QueuedWork> work_;
  std::unique_ptr<Nccl> nccl_;
};

int run_rank(Table& table, int rank, int size, bool largest, int rounds) {
  try {
    return Rank(table, rank, size).run(largest, rounds);
  } catch (const Error& error) {
    ++table.failed;
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    return 1;
  }
}

int run_all(int size, bool largest, int rounds) {
  void* const shared =
      mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 1;
  auto* const table = new (shared) Table;
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      const int status = run_rank(*table, rank, size, largest, rounds);
      std::fflush(nullptr);
      _exit(status);
    }
    children.push_back(child);
  }
  int worst = 0;
  for (const pid_t child : children) {
    int status = 1;
    waitpid(child, &status, 0);
    if (status != 0) {
      worst = 1;
      ++table->failed;
    }
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  int ranks = 2, largest = 1, rounds = 0;
  for (int index = 1; index + 1 < argc; index += 2) {
    const int value = std::atoi(argv[index + 1]);
    if (std::strcmp(argv[index], "--ranks") == 0) ranks = std::clamp(value, 2, kMostRanks);
    if (std::strcmp(argv[index], "--largest") == 0) largest = value;
    if (std::strcmp(argv[index], "--rounds") == 0) rounds = std::max(0, value);
  }
  return run_all(ranks, largest != 0, rounds);
}
