// SPDX-License-Identifier: Apache-2.0
// Tensors of two ranks' GPUs, which may be one GPU: by MPI through host memory, and by NCCL, whose
// sums are recorded too. A GPU that two ranks share is refused by NCCL unless they seem to be on
// hosts of their own; then it goes over sockets.
//
//   mpirun -n 2 gpu_pair
//
// Status 1: values are wrong, or MPI cannot. That NCCL cannot is told, and no failure.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "topology/nccl_settings.h"
#include "worker/comm/device_transport.h"
#include "worker/comm/mpi.h"
#include "worker/comm/nccl.h"

namespace {

using namespace trireme;

constexpr std::chrono::seconds kPatience{40};  // of each way
constexpr int kGroupTag = 100;

// Small whole numbers, so that every order of summation gives the same bits.
float sample(int rank, int64_t index) {
  return static_cast<float>((index * 37 + rank * 1009 + index / 4096) % 2039 - 1000);
}

struct WrongValue : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A tensor [rows, cols] in the GPU's memory.
class OnDevice {
 public:
  OnDevice(Backend& backend, Communicator& group, int64_t rows, int64_t cols)
      : backend_(backend),
        group_(group),
        host_(static_cast<size_t>(rows * cols)),
        buffer_(backend.allocate(host_.size() * sizeof(float))),
        tensor_(buffer_.data(), DType::kF32, rows, cols) {}
  Tensor fill(const std::function<float(int64_t)>& value) {
    for (size_t i = 0; i < host_.size(); ++i) host_[i] = value(static_cast<int64_t>(i));
    backend_.upload(buffer_.data(), host_.data(), host_.size() * sizeof(float));
    return tensor_;
  }
  const Tensor& tensor() const { return tensor_; }
  void expect(const std::string& what, const std::function<float(int64_t)>& value) {
    group_.settle();
    backend_.download(host_.data(), buffer_.data(), host_.size() * sizeof(float));
    for (size_t i = 0; i < host_.size(); ++i) {
      const float expected = value(static_cast<int64_t>(i));
      if (host_[i] == expected) continue;
      throw WrongValue(what + " of " + std::to_string(host_.size()) + " values: value " +
                       std::to_string(i) + " is " + std::to_string(host_[i]) + ", expected " +
                       std::to_string(expected));
    }
  }

 private:
  Backend& backend_;
  Communicator& group_;
  std::vector<float> host_;
  Buffer buffer_;
  Tensor tensor_;
};

float poison(int64_t) { return -12345; }

void check_sizes(Backend& backend, Communicator& group, int64_t rows, int64_t cols) {
  const int self = group.rank();
  const int other = 1 - self;
  const auto mine = [&](int64_t i) { return sample(self, i); };
  OnDevice x(backend, group, rows, cols), y(backend, group, rows, cols);
  group.all_reduce_sum(x.fill(mine));
  x.expect("a sum", [](int64_t i) { return sample(0, i) + sample(1, i); });
  for (const int from : {0, 1}) {
    if (self == from) {
      group.send(x.fill(mine), other);
    } else {
      group.recv(y.fill(poison), other);
      y.expect("what was sent", [&](int64_t i) { return sample(other, i); });
    }
  }
  group.broadcast(y.fill(self == 1 ? std::function<float(int64_t)>(mine) : poison), 1);
  y.expect("a broadcast", [](int64_t i) { return sample(1, i); });
  // Rank 1 has more columns.
  const int parts[] = {static_cast<int>(cols), static_cast<int>(2 * cols)};
  OnDevice part(backend, group, rows, parts[self]), all(backend, group, rows, 3 * cols);
  group.gather_columns(all.fill(poison), part.fill(mine), parts, 0);
  if (self != 0) return group.settle();
  all.expect("gathered columns", [&](int64_t i) {
    const int64_t row = i / (3 * cols), col = i % (3 * cols);
    return col < cols ? sample(0, row * cols + col) : sample(1, row * 2 * cols + col - cols);
  });
}

// Run as they are, recorded, replayed, and others in between; as one rank replays the other may
// not.
void check_recorded(Backend& backend, Communicator& group, int64_t rows, int64_t cols) {
  const auto key = static_cast<uint64_t>(rows << 32 | cols);
  OnDevice x(backend, group, rows, cols), y(backend, group, rows, cols);
  for (int time = 0; time < 6; ++time) {
    const auto value = [&](int rank) { return [=](int64_t i) { return sample(rank, i + time); }; };
    x.fill(value(group.rank()));
    y.fill(value(group.rank()));
    const auto operations = [&] {
      group.all_reduce_sum(x.tensor());
      backend.scale(x.tensor(), 0.5f);
      group.all_reduce_sum(x.tensor());
    };
    if (time == 4 && group.rank() == 0) {
      operations();
    } else {
      backend.replay(key, operations);
      group.replayed();
    }
    group.all_reduce_sum(y.tensor());
    const auto sum = [&](int64_t i) { return value(0)(i) + value(1)(i); };
    x.expect("a recorded sum", sum);  // half of it, from each rank
    y.expect("a sum behind a recorded one", sum);
  }
}

// Seconds of one sum, until the GPU has it.
double time_of_sum(Backend& backend, Communicator& group, int64_t values) {
  constexpr int kRounds = 9;
  OnDevice x(backend, group, 1, values);
  const Tensor tensor = x.fill([](int64_t) { return 0.0f; });
  std::vector<double> took;
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    group.all_reduce_sum(tensor);
    group.settle();
    backend.synchronize();
    took.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(took.begin(), took.begin() + kRounds / 2, took.end());
  return took[kRounds / 2];
}

void check(const std::string& way, Backend& backend, Communicator& group) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 577}, {1, 4096}, {2048, 4096}}) {
    check_sizes(backend, group, rows, cols);
    if (group.can_record(rows * cols * int64_t{sizeof(float)})) {
      check_recorded(backend, group, rows, cols);
    }
  }
  const bool recorded = group.can_record(sizeof(float));
  const double small = time_of_sum(backend, group, 4096);
  const double large = time_of_sum(backend, group, 4 << 20);
  if (group.rank() != 0) return;
  std::printf("%s: works%s; a sum of 16 KiB takes %.0f us, of 16 MiB %.1f ms\n", way.c_str(),
              recorded ? ", recorded too" : "", small * 1e6, large * 1e3);
}

void check_mpi(MpiJob& job, Backend& backend) {
  Cancellation cancellation;
  cancellation.set_deadline(std::chrono::steady_clock::now() + kPatience);
  const auto host = job.make_transport(cancellation);
  DeviceTransportOptions options;  // no ranks that could use NCCL
  options.rank = job.rank();
  options.cancellation = &cancellation;
  options.progress = std::make_shared<Progress>();
  const std::vector<int> ranks = {0, 1};
  const auto group = make_device_transport(*host, backend, options)->make_group(ranks, kGroupTag);
  check("MPI through host memory", backend, *group);
}

void check_nccl(MpiJob& job, Backend& backend, const std::string& hosts) {
  Cancellation cancellation;
  cancellation.set_deadline(std::chrono::steady_clock::now() + kPatience);
  const auto work =
      std::make_shared<QueuedWork>(backend, cancellation, std::make_shared<Progress>());
  const auto nccl = make_nccl(backend, work);
  const std::string key = job.broadcast(job.rank() == 0 ? nccl->make_key() : "", kPatience);
  const std::vector<int> ranks = {0, 1};
  const auto group = nccl->make_group(ranks, job.rank(), key);
  check("NCCL " + std::to_string(nccl->version()) + hosts, backend, *group);
}

// What the library refuses is told, and no failure; a wrong value is one.
void try_nccl(MpiJob& job, Backend& backend, const std::string& hosts) {
  try {
    check_nccl(job, backend, hosts);
  } catch (const Error& error) {
    std::printf("NCCL%s, rank %d: does not work: %s\n", hosts.c_str(), job.rank(), error.what());
  }
}

}  // namespace

int main() {
  MpiJob job;
  try {
    if (job.size() != 2) {
      throw Error(Code::kInvalidArgument,
                  "found " + std::to_string(job.size()) + " ranks, needed 2: mpirun -n 2 gpu_pair");
    }
    const auto count = cuda_devices().devices.size();
    if (count == 0) throw Error(Code::kFailedPrecondition, "there is no GPU");
    const int index = job.rank() % static_cast<int>(count);
    const auto backend = make_backend({.device = "cuda", .device_index = index});
    if (job.rank() == 0) std::printf("rank 0 has %s\n", backend->name().c_str());
    check_mpi(job, *backend);
    // Read when the library is first used, so before that.
    const std::string id = "rank-" + std::to_string(job.rank());
    if (count == 1) setenv("NCCL_HOSTID", id.c_str(), 0);
    set_nccl_variables({});
    try_nccl(job, *backend, count == 1 ? ", one GPU, hosts of their own" : "");
    std::fflush(stdout);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: rank %d: %s\n", job.rank(), error.what());
    job.abort(1);
  }
  return 0;
}
